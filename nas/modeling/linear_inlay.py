"""`linear`: one matrix from the normed input to the update.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .subblock_inlay import MIXERS, SLOTS, Entry, Sizes, Slot, SubblockKind, Tensors, norm_tensors

if TYPE_CHECKING:
    from torch import nn

    from .context_inlay import ModelConfig


class Linear(SubblockKind):
    """hidden by hidden, without a bias, token by token."""

    name = "linear"
    slots = SLOTS
    is_plain = True

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """The norm and the matrix."""
        return {**norm_tensors(slot, sizes), f"{MIXERS[slot]}.weight": (sizes.hidden, sizes.hidden)}

    def mixer(self, config: ModelConfig, layer_index: int, entry: Entry) -> nn.Module:
        """The matrix."""
        from torch import nn

        return nn.Linear(config.hidden_size, config.hidden_size, bias=False)
