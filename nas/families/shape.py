"""The sizes of a parent, and the tensors that a subblock of given sizes holds; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

Slot: TypeAlias = Literal["attention", "ffn"]
Entry: TypeAlias = dict[str, Any]
"""How a choice for one subblock stands in config.json: its `kind` and the sizes of that kind."""

SLOTS: Final[tuple[Slot, Slot]] = ("attention", "ffn")

ATTENTION_NORM: Final = "input_layernorm"
ATTENTION: Final = "self_attn"
QUERY: Final = "self_attn.q_proj"
KEY: Final = "self_attn.k_proj"
VALUE: Final = "self_attn.v_proj"
OUTPUT: Final = "self_attn.o_proj"
QUERY_NORM: Final = "self_attn.q_norm"
KEY_NORM: Final = "self_attn.k_norm"
FFN_NORM: Final = "post_attention_layernorm"
FFN: Final = "mlp"
GATE: Final = "mlp.gate_proj"
UP: Final = "mlp.up_proj"
DOWN: Final = "mlp.down_proj"
EMBEDDING: Final = "model.embed_tokens.weight"
FINAL_NORM: Final = "model.norm.weight"
HEAD: Final = "lm_head.weight"

DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """Everything about a parent's architecture that sizes depend on."""

    family: str
    num_layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab: int
    tied: bool
    """Whether the head is the embedding."""
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    mlp_bias: bool
    dtype: str
    """`float32`, `bfloat16` or `float16`: what Transformers loads the parent in, and what a child is stored in."""
    max_positions: int
    """The context: the longest sequence that the parent was made for, in tokens."""
    windows: tuple[int | None, ...]
    """The parent's own sliding window of each layer, in tokens; `None` where the layer sees everything."""

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one stored number."""
        return DTYPE_BYTES[self.dtype]

    def parent_entry(self, layer: int, slot: Slot) -> Entry:
        """The entry of the parent's own subblock at `layer`."""
        if slot == "ffn":
            return {"kind": "gated", "width": self.ffn_width}
        return self.attention_entry(layer, self.kv_heads)

    def attention_entry(self, layer: int, kv_heads: int) -> Entry:
        """The entry of attention with `kv_heads`, sliding where the parent's layer slides."""
        window = self.windows[layer]
        if window is None:
            return {"kind": "full", "kv_heads": kv_heads}
        return {"kind": "window", "kv_heads": kv_heads, "window": window, "sinks": 0}


def subblock_tensors(shape: Shape, slot: Slot, entry: Entry) -> dict[str, tuple[int, ...]]:
    """Layer-local tensor names and shapes of one subblock, its norm included, empty for a no-op.

    Raises `ValueError` for an entry kind that the slot does not have.
    """
    hidden = shape.hidden
    match slot, entry["kind"]:
        case _, "no_op":
            return {}
        case "attention", "linear":
            return {f"{ATTENTION_NORM}.weight": (hidden,), f"{ATTENTION}.weight": (hidden, hidden)}
        case "ffn", "linear":
            return {f"{FFN_NORM}.weight": (hidden,), f"{FFN}.weight": (hidden, hidden)}
        case "attention", "full" | "window":
            return _attention_tensors(shape, entry["kv_heads"])
        case "ffn", "gated":
            return _ffn_tensors(shape, entry["width"])
    raise ValueError(f"`{entry['kind']}` is not a kind of {slot} entry.")


def ends_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Whole-model names and shapes of embedding, final norm and head; a tied head is not a tensor of its own."""
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden), FINAL_NORM: (shape.hidden,)}
    return tensors if shape.tied else tensors | {HEAD: (shape.vocab, shape.hidden)}


def layer_prefix(layer: int) -> str:
    """What stands before a layer-local name in the whole model."""
    return f"model.layers.{layer}."


def _attention_tensors(shape: Shape, kv_heads: int) -> dict[str, tuple[int, ...]]:
    q_width, kv_width = shape.q_heads * shape.head_dim, kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {f"{ATTENTION_NORM}.weight": (shape.hidden,)}
    for name, width in ((QUERY, q_width), (KEY, kv_width), (VALUE, kv_width)):
        tensors |= _linear(name, width, shape.hidden, shape.qkv_bias)
    tensors |= _linear(OUTPUT, shape.hidden, q_width, shape.o_bias)
    if shape.qk_norm:
        tensors |= {f"{QUERY_NORM}.weight": (shape.head_dim,), f"{KEY_NORM}.weight": (shape.head_dim,)}
    return tensors


def _ffn_tensors(shape: Shape, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{FFN_NORM}.weight": (shape.hidden,),
        **_linear(GATE, width, shape.hidden, shape.mlp_bias),
        **_linear(UP, width, shape.hidden, shape.mlp_bias),
        **_linear(DOWN, shape.hidden, width, shape.mlp_bias),
    }


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight
