"""What each kind of subblock is made of in vLLM, from its own parallel layers, and the one table of kinds.

Names of weights are those of the child's model.safetensors, except that vLLM holds query, key and value as one matrix,
and gate and up as one. Shapes: `N` tokens of all sequences at once, `D` model width, `Q` and `K` what this rank has of
queries and of keys or values.
"""

# vLLM may be absent where types are checked, so its classes have none.
# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from vllm.config import CacheConfig
from vllm.model_executor.layers.activation import get_act_and_mul_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope

from inlay.nas.families.shape import Shape
from inlay.nas.modeling.full_inlay import FullAttention, query_heads
from inlay.nas.modeling.gated_inlay import GatedFfn
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.linear_inlay import Linear
from inlay.nas.modeling.subblock_inlay import Entry
from inlay.nas.modeling.window_inlay import WindowAttention

SPLIT_WEIGHTS: Mapping[str, tuple[str, str | int]] = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".gate_proj": (".gate_up_proj", 0),
    ".up_proj": (".gate_up_proj", 1),
}
"""Weights of the child's file that are parts of one of vLLM's: whose, and which."""


@dataclass(frozen=True)
class Common:
    """What all layers of a model share."""

    shape: Shape
    activation: str
    epsilon: float
    """Of every norm."""
    rope_parameters: dict[str, Any]
    cache: CacheConfig
    quantization: QuantizationConfig | None


class CausalAttention(nn.Module):
    """Attention over all tokens before, or the last `window`, with the layer's own numbers of heads."""

    def __init__(self, entry: Entry, common: Common, prefix: str) -> None:
        super().__init__()
        shape, quantization = common.shape, common.quantization
        all_heads = query_heads(entry, shape)
        self.qkv_proj = QKVParallelLinear(
            shape.hidden,
            shape.head_dim,
            all_heads,
            entry["kv_heads"],
            bias=shape.qkv_bias,
            quant_config=quantization,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            all_heads * shape.head_dim,
            shape.hidden,
            bias=shape.o_bias,
            quant_config=quantization,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = get_rope(
            shape.head_dim, max_position=shape.max_positions, rope_parameters=common.rope_parameters
        )
        self.q_norm = RMSNorm(shape.head_dim, eps=common.epsilon) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, eps=common.epsilon) if shape.qk_norm else None
        self.head_dim = shape.head_dim
        (key,) = SUBBLOCKS.of(entry).masks(entry)
        heads, kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads  # this rank's
        self.widths = [width * shape.head_dim for width in (heads, kv_heads, kv_heads)]
        self.attn = Attention(
            heads,
            shape.head_dim,
            shape.head_dim**-0.5,
            num_kv_heads=kv_heads,
            cache_config=common.cache,
            quant_config=quantization,
            per_layer_sliding_window=None if key is None else key[0],
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions_N: Tensor, hidden_ND: Tensor) -> Tensor:
        """The update [N, D] from the normed input."""
        together, _ = self.qkv_proj(hidden_ND)
        queries_NQ, keys_NK, values_NK = together.split(self.widths, dim=-1)
        queries_NQ = _by_head(self.q_norm, queries_NQ, self.head_dim)
        keys_NK = _by_head(self.k_norm, keys_NK, self.head_dim)
        queries_NQ, keys_NK = self.rotary_emb(positions_N, queries_NQ, keys_NK)
        update_ND: Tensor
        update_ND, _ = self.o_proj(self.attn(queries_NQ, keys_NK, values_NK))
        return update_ND


class GatedMlp(nn.Module):
    """down(act(gate x) * up x) with the layer's own width."""

    def __init__(self, entry: Entry, common: Common, prefix: str) -> None:
        super().__init__()
        hidden, bias, quantization = common.shape.hidden, common.shape.mlp_bias, common.quantization
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden, [entry["width"]] * 2, bias=bias, quant_config=quantization, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(
            entry["width"], hidden, bias=bias, quant_config=quantization, prefix=f"{prefix}.down_proj"
        )
        self.act_fn = get_act_and_mul_fn(common.activation)

    def forward(self, positions_N: Tensor, hidden_ND: Tensor) -> Tensor:
        """The update [N, D] from the normed input."""
        together, _ = self.gate_up_proj(hidden_ND)
        update_ND: Tensor
        update_ND, _ = self.down_proj(self.act_fn(together))
        return update_ND


class OneMatrix(RowParallelLinear):
    """hidden by hidden; every rank reads its part of the matrix, and they sum."""

    def __init__(self, entry: Entry, common: Common, prefix: str) -> None:
        hidden = common.shape.hidden
        super().__init__(
            hidden, hidden, bias=False, input_is_parallel=False, quant_config=common.quantization, prefix=prefix
        )

    def forward(self, positions_N: Tensor, hidden_ND: Tensor) -> Tensor:
        """The update [N, D] from the normed input."""
        update_ND: Tensor
        update_ND, _ = super().forward(hidden_ND)
        return update_ND


MIXERS_BY_KIND: Mapping[str, Callable[[Entry, Common, str], nn.Module]] = {
    FullAttention.name: CausalAttention,
    WindowAttention.name: CausalAttention,
    GatedFfn.name: GatedMlp,
    Linear.name: OneMatrix,
}
"""The module behind the norm, by the `kind` of its entry; a kind that is absent has none."""


def unused_attention(common: Common, prefix: str) -> nn.Module:
    """A KV cache of one head that no layer reads."""
    head_dim = common.shape.head_dim
    attention: nn.Module = Attention(
        1, head_dim, head_dim**-0.5, num_kv_heads=1, cache_config=common.cache, prefix=f"{prefix}.attn"
    )
    return attention


def _by_head(norm: nn.Module | None, states_NQ: Tensor, head_dim: int) -> Tensor:
    """Each head normed, in families that do."""
    if norm is None:
        return states_NQ
    normed: Tensor = norm(states_NQ.reshape(*states_NQ.shape[:-1], -1, head_dim))
    return normed.reshape(states_NQ.shape)
