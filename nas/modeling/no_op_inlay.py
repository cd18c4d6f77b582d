"""`no_op`: no subblock; the residual passes it by.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .subblock_inlay import SLOTS, Entry, Sizes, Slot, SubblockKind, Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .context_inlay import ForwardContext, Layer, ModelConfig


class NoOp(SubblockKind):
    """No norm, no weights, no cache, no time."""

    name = "no_op"
    slots = SLOTS
    absent = True

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """None."""
        return {}

    def modules(self, config: ModelConfig, layer_index: int, slot: Slot, entry: Entry) -> dict[str, nn.Module]:
        """None."""
        return {}

    def update(self, layer: Layer, slot: Slot, hidden_BSD: Tensor, context: ForwardContext | None) -> Tensor:
        """Zeros; a layer's forward does not even ask."""
        import torch

        return torch.zeros_like(hidden_BSD)


ABSENT: dict[str, str] = {"kind": NoOp.name}
"""The entry of a slot that a layer does not have."""
