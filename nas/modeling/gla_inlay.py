"""`gla`: gated linear attention (Yang et al., arXiv 2312.06635), whose state does not grow with the tokens seen.

Keys and queries are the parent's, rotated and then cut off below 0, so that every weight is at least 0 and weights can
be divided by their sum, as softmax's are. A gate for each number of a key, which the token decides, lets the state
fade. What computes it is gla_modules_inlay.py.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .full_inlay import HEADS, FullAttention, attention_tensors, heads_problem, query_heads
from .subblock_inlay import Entry, Sizes, Slot, SubblockKind, Tensors, projection

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.cache_utils import CacheLayerMixin

    from .context_inlay import ForwardContext, Layer, ModelConfig

GATE_DOWN = "self_attn.gate_down"
GATE_UP = "self_attn.gate_up"
KEY_HEADS = "key_heads"
"""Heads of keys and values. Not `kv_heads`, which is what variants of softmax attention read and change."""
RANK = "rank"
"""Of the gate's projection."""


class GatedLinearAttention(SubblockKind):
    """A state a head of keys, key size by value size, in float32."""

    name = "gla"
    slots = ("attention",)
    fields: ClassVar[Mapping[str, int]] = {KEY_HEADS: 1, RANK: 1}
    optional: ClassVar[Mapping[str, int]] = {HEADS: 1}
    state_bytes = 4
    recurrent = True

    def problem(self, entry: Entry, base: Mapping[str, Any]) -> str | None:
        """Query heads are the model's or fewer, and heads of keys must divide them."""
        return heads_problem(entry, KEY_HEADS, base)

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """Those of softmax attention, and the two matrices of the gate."""
        keys, rank = int(entry[KEY_HEADS]), int(entry[RANK])
        return {
            **attention_tensors(query_heads(entry, sizes), keys, slot, sizes),
            **projection(GATE_DOWN, rank, sizes.hidden, bias=False),
            **projection(GATE_UP, keys * sizes.head_dim, rank, bias=True),
        }

    def state(self, entry: Entry, sizes: Sizes, tokens: int) -> Tensors:
        """Sums of values and of weights, however many tokens there were."""
        heads = int(entry[KEY_HEADS])
        return {"values": (heads, sizes.head_dim, sizes.head_dim), "weights": (heads, sizes.head_dim)}

    def cache_layer(self, entry: Entry) -> CacheLayerMixin:
        """One that holds the state."""
        from .gla_modules_inlay import StateLayer

        return StateLayer()

    def mixer(self, config: ModelConfig, layer_index: int, entry: Entry) -> nn.Module:
        """The family's projections around a state."""
        from .gla_modules_inlay import GlaMixer

        heads = {HEADS: entry[HEADS]} if HEADS in entry else {}
        own = FullAttention().mixer(config, layer_index, {"kv_heads": entry[KEY_HEADS], **heads})
        return GlaMixer(own, config.hidden_size, entry[RANK])

    def update(self, layer: Layer, slot: Slot, hidden_BSD: Tensor, context: ForwardContext | None) -> Tensor:
        """What the state gives, from the normed input."""
        assert context is not None
        update_BSD: Tensor = layer.self_attn(layer.input_layernorm(hidden_BSD), context, layer.layer_index)
        return update_BSD
