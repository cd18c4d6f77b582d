"""`full`: the family's attention over all tokens before, with KV heads of its own (`kv_heads`), and maybe query heads.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .context_inlay import WindowKey
from .subblock_inlay import Entry, Sizes, Slot, SubblockKind, Tensors, norm_tensors, projection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .context_inlay import ForwardContext, Layer, ModelConfig

QUERY = "self_attn.q_proj"
KEY = "self_attn.k_proj"
VALUE = "self_attn.v_proj"
OUTPUT = "self_attn.o_proj"
QUERY_NORM = "self_attn.q_norm"
KEY_NORM = "self_attn.k_norm"
HEADS = "heads"
"""Query heads of an attention that has fewer than its model."""


class FullAttention(SubblockKind):
    """Softmax attention that sees every token before."""

    name = "full"
    slots = ("attention",)
    apart = ("v", "o")
    is_plain = True
    fields: ClassVar[Mapping[str, int]] = {"kv_heads": 1}
    optional: ClassVar[Mapping[str, int]] = {HEADS: 1}

    def problem(self, entry: Entry, base: Mapping[str, Any]) -> str | None:
        """Query heads are the model's or fewer, and KV heads must divide them."""
        return heads_problem(entry, "kv_heads", base)

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """The norm, four projections and, in families that norm their heads, two norms more."""
        return attention_tensors(query_heads(entry, sizes), int(entry["kv_heads"]), slot, sizes)

    def state(self, entry: Entry, sizes: Sizes, tokens: int) -> Tensors:
        """Keys and values of every token."""
        shape = (int(entry["kv_heads"]), tokens, sizes.head_dim)
        return {"keys": shape, "values": shape}

    def masks(self, entry: Entry) -> tuple[WindowKey | None, ...]:
        """The full causal one."""
        return (None,)

    def mixer(self, config: ModelConfig, layer_index: int, entry: Entry) -> nn.Module:
        """The family's attention module."""
        from .families_inlay import FAMILY_MODULES

        shape = config.family_config()
        shape.num_attention_heads = entry.get(HEADS, shape.num_attention_heads)
        shape.num_key_value_heads = entry["kv_heads"]
        attention = FAMILY_MODULES[config.family].attention(shape, layer_index)
        # The family's attention reads its implementation from here at every call; a copy would go stale.
        setattr(attention, "config", config)  # noqa: B010 (not a submodule, as the checker would have it)
        return attention

    def update(self, layer: Layer, slot: Slot, hidden_BSD: Tensor, context: ForwardContext | None) -> Tensor:
        """Attention of the normed input to what its mask shows."""
        assert context is not None
        update_BSD: Tensor
        update_BSD, weights = layer.self_attn(
            layer.input_layernorm(hidden_BSD),
            position_embeddings=context.position_embeddings,
            attention_mask=context.masks[layer.window],
            past_key_values=context.cache,
        )
        if context.attentions is not None:
            context.attentions[layer.layer_index] = weights
        return update_BSD


def query_heads(entry: Entry, sizes: Sizes) -> int:
    """Query heads of an attention: the model's, unless it has fewer."""
    return int(entry.get(HEADS, sizes.q_heads))


def attention_tensors(heads: int, kv_heads: int, slot: Slot, sizes: Sizes) -> Tensors:
    """The norm and all that a family's attention with so many heads is made of."""
    q_width, kv_width = heads * sizes.head_dim, kv_heads * sizes.head_dim
    tensors = norm_tensors(slot, sizes)
    for name, width in ((QUERY, q_width), (KEY, kv_width), (VALUE, kv_width)):
        tensors |= projection(name, width, sizes.hidden, sizes.qkv_bias)
    tensors |= projection(OUTPUT, sizes.hidden, q_width, sizes.o_bias)
    if sizes.qk_norm:
        tensors |= {f"{QUERY_NORM}.weight": (sizes.head_dim,), f"{KEY_NORM}.weight": (sizes.head_dim,)}
    return tensors


def heads_problem(entry: Entry, field: str, base: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry's query heads, and with its heads of keys, which stand in `field`."""
    kv_heads, most = entry[field], base["num_attention_heads"]
    heads = entry.get(HEADS, most)
    if HEADS in entry and heads >= most:
        return f"{HEADS} is {heads}; it must be fewer than the {most} query heads of the model, or be left out"
    return f"{field} is {kv_heads}; it must divide the {heads} query heads" if heads % kv_heads else None
