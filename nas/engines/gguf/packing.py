"""How a child's subblocks become layers that llama.cpp loads, and which tensors a file of it holds.

llama.cpp's layers are an attention and an ffn; none of its architectures has all that a child may have. So the child is
walked as a list of subblocks: a layer takes the next attention or linear map, then the next gated ffn. A layer without
any subblock is left out, a linear ffn is a linear attention of a layer of its own, and where one half is missing a
dummy that adds nothing stands in. No torch, and no gguf: sizes are asked where neither is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from inlay.nas.families.shape import EMBEDDING, FINAL_NORM, HEAD, SLOTS, Entry, Shape, layer_prefix
from inlay.nas.formats.by_tensor import form_of
from inlay.nas.formats.gguf import F32, GGUF
from inlay.nas.modeling.full_inlay import KEY, KEY_NORM, OUTPUT, QUERY, QUERY_NORM, VALUE, FullAttention, query_heads
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP, GatedFfn
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.linear_inlay import Linear
from inlay.nas.modeling.subblock_inlay import FORMAT, MIXERS, NORMS, Slot
from inlay.nas.tables.halves import Half, StandIn, layers_of
from inlay.nas.variants.storage import Block

VECTORS: Final = F32
"""What norms and biases are stored in."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Args:
        name: as llama.cpp has it.
        shape: rows first.
        format: one of `GGUF`.
        sources: the child's tensors that it is made of, whole-model names, rows one after the other; none: zeros.
        rotated_heads: where not 0, the rows are so many heads whose two halves are interleaved (`interleaved`).
    """

    name: str
    shape: tuple[int, ...]
    format: str
    sources: tuple[str, ...] = ()
    rotated_heads: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return GGUF[self.format].num_bytes(self.shape)


@dataclass(frozen=True)
class Layer:
    """One layer of a file; its tensors are named without their `blk.N.`."""

    heads: int
    kv_heads: int
    width: int
    tensors: tuple[Stored, ...]


@dataclass(frozen=True)
class Packed:
    """A model as a file holds it.

    Args:
        arch: llama.cpp's architecture.
        shape: sizes that all layers share.
        layers: in their order.
        ends: embedding, final norm and an untied head.
    """

    arch: str
    shape: Shape
    layers: tuple[Layer, ...]
    ends: tuple[Stored, ...]

    @property
    def tensors(self) -> Iterator[Stored]:
        """All of them, by their whole names."""
        yield from self.ends
        for number, layer in enumerate(self.layers):
            for tensor in layer.tensors:
                yield replace(tensor, name=f"blk.{number}.{tensor.name}")

    @property
    def weights_bytes(self) -> int:
        """Bytes of all numbers."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def kv_bytes(self, cells: int, number_bytes: int = 2) -> int:
        """Bytes of a cache of so many cells (tokens of all sequences together), f16 by default."""
        heads = sum(layer.kv_heads for layer in self.layers)
        return 2 * heads * self.shape.head_dim * cells * number_bytes


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's, as far as packing differs.

    Args:
        name: as files have it.
        mixed: whether heads and widths are read layer by layer; else all layers are alike.
        rotated: whether queries and keys are rotated in neighbouring pairs, so that their rows change places.
        fused: whether query, key and value are one tensor.
        empty_attention: whether a layer may have no heads at all, or no KV heads, which makes it a linear map.
        tied_only: whether it knows no head beside the embedding.
    """

    name: str
    mixed: bool
    rotated: bool
    fused: bool = False
    empty_attention: bool = False
    tied_only: bool = False


DECI: Final = Architecture("deci", mixed=True, rotated=True, empty_attention=True)
OPENELM: Final = Architecture("openelm", mixed=True, rotated=False, fused=True, tied_only=True)
PLAIN: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        "llama": Architecture("llama", mixed=False, rotated=True),
        "mistral": Architecture("llama", mixed=False, rotated=True),
        "qwen2": Architecture("qwen2", mixed=False, rotated=False),
        "qwen3": Architecture("qwen3", mixed=False, rotated=False),
    }
)
"""What carries a model of a family whose layers are alike, which more programs know than they know `deci`."""
LAYERS_AT_MOST: Final = 512
ROTATIONS: Final = ("default", "linear", "llama3", "yarn")
"""How llama.cpp encodes positions, as Transformers names it."""


@dataclass(frozen=True)
class Part:
    """Half a layer: the tensors of one subblock under llama.cpp's names."""

    role: Half
    tensors: tuple[Stored, ...]
    heads: int = 0
    kv_heads: int = 0
    width: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def mixed_architecture(shape: Shape) -> Architecture:
    """What carries a child whose layers differ: norms of heads decide."""
    return OPENELM if shape.qk_norm else DECI


def pack(shape: Shape, blocks: Sequence[Block], form: str, ends: str | None = None) -> Packed:
    """The layers and tensors of a file.

    Args:
        shape: the parent's sizes.
        blocks: the child's entries, one pair a layer.
        form: one of `GGUF`, for the embedding, the head, what stands in where a half is missing, and every subblock
            whose entry names no format of its own. What holds rows that do not fit in its place is the format's to say.
            Norms and biases are `VECTORS`.
        ends: the format of embedding and head; None: `form`.

    Raises:
        KeyError: a kind that `PARTS` does not list; `problem` of the engine speaks before.
    """
    parts = [part for layer, block in enumerate(blocks) for part in _parts(shape, layer, block, form)]
    mixed = mixed_architecture(shape)
    pairs = layers_of(parts, lambda part: part.role, mixed.empty_attention)
    alike = {
        (a.role, a.heads, a.kv_heads, f.width) if isinstance(a, Part) and isinstance(f, Part) else None
        for a, f in pairs
    }
    # Not all of the plain ones know heads that are fewer than fill the model's width.
    plain = len(alike) == 1 and ("attention", shape.q_heads) == (next(iter(alike)) or ())[:2]
    arch = PLAIN[shape.family] if plain else mixed
    own = stand_ins(shape, form)
    layers = []
    for attention, ffn in pairs:
        halves = (own[half] if isinstance(half, StandIn) else half for half in (attention, ffn))
        layers.append(_layer(arch, *halves))
    return Packed(arch.name, shape, tuple(layers), _ends(shape, ends or form))


def stand_ins(shape: Shape, form: str) -> Mapping[StandIn, Part]:
    """What stands where a layer lacks a half."""
    return {
        StandIn.MAP: _no_map(shape, form),
        StandIn.ATTENTION: _no_attention(shape, form),
        StandIn.FFN: _no_ffn(shape, form),
    }


def matrix(name: str, shape: tuple[int, int], form: str, *sources: str) -> Stored:
    """A matrix in `form`, or in what that says of it where a subblock's differ; or in what holds its rows in its
    place."""
    own = form_of(form, sources[0]) if sources else form
    return Stored(name, shape, GGUF[own].holding(shape[1]).name, sources)


def _parts(shape: Shape, layer: int, block: Block, form: str) -> Iterator[Part]:
    for slot in SLOTS:
        entry = block[slot]
        if not SUBBLOCKS.of(entry).absent:
            yield part_of(shape, layer, slot, entry, form)


def part_of(shape: Shape, layer: int, slot: Slot, entry: Entry, form: str) -> Part:
    """One subblock that is not absent, in its own format or else in `form`; KeyError for a kind not in `PARTS`."""
    return PARTS[entry["kind"]](shape, layer_prefix(layer), slot, entry, entry.get(FORMAT, form))


def _full(shape: Shape, prefix: str, slot: Slot, entry: Entry, form: str) -> Part:
    heads, kv_heads = query_heads(entry, shape), int(entry["kv_heads"])
    hidden, q_width, kv_width = shape.hidden, heads * shape.head_dim, kv_heads * shape.head_dim
    tensors = [_norm("attn_norm", shape, prefix, slot)]
    for name, width, module in (("attn_q", q_width, QUERY), ("attn_k", kv_width, KEY), ("attn_v", kv_width, VALUE)):
        tensors += _projection(name, width, hidden, shape.qkv_bias, prefix + module, form)
    tensors += _projection("attn_output", hidden, q_width, shape.o_bias, prefix + OUTPUT, form)
    if shape.qk_norm:
        for name, module in (("attn_q_norm", QUERY_NORM), ("attn_k_norm", KEY_NORM)):
            tensors.append(Stored(f"{name}.weight", (shape.head_dim,), VECTORS, (f"{prefix}{module}.weight",)))
    return Part("attention", tuple(tensors), heads=heads, kv_heads=kv_heads)


def _linear(shape: Shape, prefix: str, slot: Slot, entry: Entry, form: str) -> Part:
    square = (shape.hidden, shape.hidden)
    weight = matrix("attn_output.weight", square, form, f"{prefix}{MIXERS[slot]}.weight")
    return Part("map", (_norm("attn_norm", shape, prefix, slot), weight), heads=shape.q_heads)


def _gated(shape: Shape, prefix: str, slot: Slot, entry: Entry, form: str) -> Part:
    width, hidden = int(entry["width"]), shape.hidden
    tensors = [_norm("ffn_norm", shape, prefix, slot)]
    for name, rows, row, module in (
        ("ffn_gate", width, hidden, GATE),
        ("ffn_up", width, hidden, UP),
        ("ffn_down", hidden, width, DOWN),
    ):
        tensors += _projection(name, rows, row, shape.mlp_bias, prefix + module, form)
    return Part("ffn", tuple(tensors), width=width)


PARTS: Final[Mapping[str, Callable[[Shape, str, Slot, Entry, str], Part]]] = MappingProxyType(
    {FullAttention.name: _full, Linear.name: _linear, GatedFfn.name: _gated}
)
"""How a kind of subblock is stored, by its name; those that are absent are not."""


def _projection(name: str, rows: int, row: int, bias: bool, module: str, form: str) -> list[Stored]:
    tensors = [matrix(f"{name}.weight", (rows, row), form, f"{module}.weight")]
    return [*tensors, Stored(f"{name}.bias", (rows,), VECTORS, (f"{module}.bias",))] if bias else tensors


def _norm(name: str, shape: Shape, prefix: str, slot: Slot) -> Stored:
    return Stored(f"{name}.weight", (shape.hidden,), VECTORS, (f"{prefix}{NORMS[slot]}.weight",))


def _layer(arch: Architecture, attention: Part | None, ffn: Part | None) -> Layer:
    assert ffn is not None
    if attention is None:
        return Layer(0, 0, ffn.width, ffn.tensors)
    tensors = attention.tensors
    if arch.rotated:
        tensors = tuple(_rotated(tensor, attention) for tensor in tensors)
    if arch.fused:
        tensors = _fused(tensors)
    return Layer(attention.heads, attention.kv_heads, ffn.width, tensors + ffn.tensors)


def _no_map(shape: Shape, form: str) -> Part:
    """A linear map to nothing: `deci` wants heads in its first layer, and this one has no cache."""
    zeros = matrix("attn_output.weight", (shape.hidden, shape.hidden), form)
    return Part("map", (Stored("attn_norm.weight", (shape.hidden,), VECTORS), zeros), heads=shape.q_heads)


def _no_attention(shape: Shape, form: str) -> Part:
    """One head that adds nothing."""
    vectors = {"attn_norm": shape.hidden}
    if shape.qk_norm:
        vectors |= {"attn_q_norm": shape.head_dim, "attn_k_norm": shape.head_dim}
    tensors = [Stored(f"{name}.weight", (size,), VECTORS) for name, size in vectors.items()]
    tensors += [matrix(f"{name}.weight", (shape.head_dim, shape.hidden), form) for name in _QKV]
    tensors.append(matrix("attn_output.weight", (shape.hidden, shape.head_dim), form))
    return Part("attention", tuple(tensors), heads=1, kv_heads=1)


def _no_ffn(shape: Shape, form: str) -> Part:
    """One channel that adds nothing: with an ffn of width 0 llama.cpp skips the attention too."""
    tensors = [Stored("ffn_norm.weight", (shape.hidden,), VECTORS)]
    tensors += [matrix(f"{name}.weight", (1, shape.hidden), form) for name in ("ffn_gate", "ffn_up")]
    return Part("ffn", (*tensors, matrix("ffn_down.weight", (shape.hidden, 1), form)), width=1)


_QKV: Final = ("attn_q", "attn_k", "attn_v")


def _rotated(tensor: Stored, attention: Part) -> Stored:
    heads = {"attn_q": attention.heads, "attn_k": attention.kv_heads}.get(tensor.name.split(".")[0], 0)
    return replace(tensor, rotated_heads=heads)


def _fused(tensors: Sequence[Stored]) -> tuple[Stored, ...]:
    """Query, key and value as one matrix, and as one bias where they have any."""
    fused: list[Stored] = []
    for kind in ("weight", "bias"):
        parts = [tensor for tensor in tensors if tensor.name in {f"{name}.{kind}" for name in _QKV}]
        if parts:
            rows = sum(part.shape[0] for part in parts)
            sources = tuple(source for part in parts for source in part.sources)
            fused.append(replace(parts[0], name=f"attn_qkv.{kind}", shape=(rows, *parts[0].shape[1:]), sources=sources))
    return (*(tensor for tensor in tensors if tensor.name.split(".")[0] not in _QKV), *fused)


def _ends(shape: Shape, form: str) -> tuple[Stored, ...]:
    table = (shape.vocab, shape.hidden)
    ends = [matrix("token_embd.weight", table, form, EMBEDDING)]
    ends.append(Stored("output_norm.weight", (shape.hidden,), VECTORS, (FINAL_NORM,)))
    return tuple(ends if shape.tied else [*ends, matrix("output.weight", table, form, HEAD)])
