"""`gated`: the family's gated ffn with `width` channels.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from .subblock_inlay import Entry, Sizes, Slot, SubblockKind, Tensors, norm_tensors, projection

if TYPE_CHECKING:
    from torch import nn

    from .context_inlay import ModelConfig

GATE = "mlp.gate_proj"
UP = "mlp.up_proj"
DOWN = "mlp.down_proj"


class GatedFfn(SubblockKind):
    """down(act(gate x) * up x)."""

    name = "gated"
    slots = ("ffn",)
    apart = ("down",)
    is_plain = True
    fields: ClassVar[Mapping[str, int]] = {"width": 1}

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """The norm and three projections."""
        width, hidden, bias = int(entry["width"]), sizes.hidden, sizes.mlp_bias
        return {
            **norm_tensors(slot, sizes),
            **projection(GATE, width, hidden, bias),
            **projection(UP, width, hidden, bias),
            **projection(DOWN, hidden, width, bias),
        }

    def mixer(self, config: ModelConfig, layer_index: int, entry: Entry) -> nn.Module:
        """The family's ffn module."""
        from .families_inlay import FAMILY_MODULES

        shape = config.family_config()
        shape.intermediate_size = entry["width"]
        return FAMILY_MODULES[config.family].mlp(shape)
