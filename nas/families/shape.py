"""The sizes of a parent, one entry a layer, and the tensors that it and its subblocks hold; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import SLOTS, Slot

Entry: TypeAlias = dict[str, Any]
"""How a choice for one subblock stands in config.json: its `kind` and the sizes of that kind."""

EMBEDDING: Final = "model.embed_tokens.weight"
FINAL_NORM: Final = "model.norm.weight"
HEAD: Final = "lm_head.weight"

DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """Everything about a parent's architecture that sizes depend on; its layers need not be alike."""

    family: str
    """Whose modules the layers are made of."""
    hidden: int
    q_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Whether the head is the embedding."""
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    mlp_bias: bool
    dtype: str
    """`float32`, `bfloat16` or `float16`: what Transformers loads the parent in, and what a child is stored in."""
    rotation: str
    """Transformers' name of how positions are encoded: `default`, `llama3`, `yarn`."""
    max_positions: int
    """The context: the longest sequence that the parent was made for, in tokens."""
    blocks: tuple[Mapping[Slot, Entry], ...]
    """The parent's own subblocks, layer by layer."""

    @property
    def num_layers(self) -> int:
        """Layers, those without any subblock included."""
        return len(self.blocks)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one stored number."""
        return DTYPE_BYTES[self.dtype]

    def parent_entry(self, layer: int, slot: Slot) -> Entry:
        """The entry of the parent's own subblock at `layer`."""
        return dict(self.blocks[layer][slot])


def subblock_tensors(shape: Shape, slot: Slot, entry: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Layer-local tensor names and shapes of one subblock, its norm included, empty where there is none."""
    return SUBBLOCKS.of(entry).tensors(entry, slot, shape)


def ends_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Whole-model names and shapes of embedding, final norm and head; a tied head is not a tensor of its own."""
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden), FINAL_NORM: (shape.hidden,)}
    return tensors if shape.tied else tensors | {HEAD: (shape.vocab, shape.hidden)}


def layer_prefix(layer: int) -> str:
    """What stands before a layer-local name in the whole model."""
    return f"model.layers.{layer}."


__all__ = [
    "DTYPE_BYTES",
    "EMBEDDING",
    "FINAL_NORM",
    "HEAD",
    "SLOTS",
    "Entry",
    "Shape",
    "Slot",
    "ends_tensors",
    "layer_prefix",
    "subblock_tensors",
]
