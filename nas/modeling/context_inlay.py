"""What a subblock is given: the configuration of its model, its layer, and what all layers of one forward share.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers.cache_utils import Cache

WindowKey = tuple[int, int]  # (window, sinks)


class ModelConfig(Protocol):
    """What modules are built by."""

    @property
    def family(self) -> str:
        """The parent's family."""

    @property
    def hidden_size(self) -> int:
        """Model width."""

    @property
    def rms_norm_eps(self) -> float:
        """What keeps a norm from dividing by 0."""

    def family_config(self) -> Any:
        """A configuration of the family's own class, to be changed freely."""


class Layer(Protocol):
    """The layer that a subblock is part of, with the modules that its kind gave it."""

    @property
    def layer_index(self) -> int:
        """Its place in the model, which is that of its cache layer."""

    @property
    def window(self) -> WindowKey | None:
        """The mask of its attention."""

    @property
    def input_layernorm(self) -> nn.Module:
        """The norm before attention."""

    @property
    def self_attn(self) -> nn.Module:
        """Attention, or what stands in its place."""


@dataclass
class ForwardContext:
    """What all layers of one forward share.

    `position_embeddings` are cos and sin [1 or B, S, head_dim]; `masks` has one entry a kind of attention: None for
    full, (window, sinks) otherwise; a mask that is None is plain causal. `attentions`, when a list, collects one
    entry a layer. For kinds with a state, `real_BS` is True where a new token is no padding (None: none is), and
    `documents_BS` numbers the documents packed in a row (None: one a row).
    """

    position_embeddings: tuple[Tensor, Tensor]
    masks: dict[WindowKey | None, Any] = field(default_factory=dict)
    cache: Cache | None = None
    attentions: list[Tensor | None] | None = None
    real_BS: Tensor | None = None
    documents_BS: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> ForwardContext:
        """The same context on another device; accelerate calls this where a model's layers are spread."""
        import torch

        cos, sin = self.position_embeddings
        if cos.device == torch.device(device):
            return self
        masks = {key: mask if mask is None else mask.to(device) for key, mask in self.masks.items()}
        return replace(
            self,
            position_embeddings=(cos.to(device, non_blocking=non_blocking), sin.to(device, non_blocking=non_blocking)),
            masks=masks,
            real_BS=None if self.real_BS is None else self.real_BS.to(device, non_blocking=non_blocking),
            documents_BS=None if self.documents_BS is None else self.documents_BS.to(device, non_blocking=non_blocking),
        )
