"""The programs that run DeciLM folders, each as data: what it cannot run, and what its blocks look like.

They share the architecture's name and little more: a size that one needs is an error to another, so no folder serves
all. Adding a consumer is an entry in `CONSUMERS`; what each was read from stands in docs/export.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from inlay.nas.families.shape import Entry, Shape
from inlay.nas.modeling.full_inlay import FullAttention, query_heads
from inlay.nas.modeling.gated_inlay import GatedFfn
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.linear_inlay import Linear
from inlay.nas.modeling.no_op_inlay import NoOp
from inlay.nas.modeling.subblock_inlay import MIXERS, SLOTS, Slot

Block: TypeAlias = Mapping[str, Entry]
"""The entries of one layer by slot."""
Choice: TypeAlias = dict[str, Any]
"""One subblock as it stands in `block_configs` of config.json."""

MULTIPLE: Final = 256
"""Channels that a width given by `ffn_mult` is rounded up to a multiple of."""


_ROPE: Final = ("default", "linear", "dynamic", "llama3", "yarn")
"""What all of them know of rotary embeddings."""


class UnfitError(ValueError):
    """A subblock that a consumer cannot run; the text says why."""


@dataclass(frozen=True)
class Child:
    """What a consumer is asked about."""

    shape: Shape
    blocks: Sequence[Block]
    activation: str
    """The ffn's, by Transformers' name."""
    rope_type: str
    """Of the rotary embedding, by Transformers' name; `default` is the plain one."""


Write: TypeAlias = Callable[[Entry, Shape], Choice]
Check: TypeAlias = Callable[[Child], Iterator[str]]


@dataclass(frozen=True)
class Consumer:
    """One program that runs DeciLM folders."""

    name: str
    """The value of `--for`."""
    title: str
    serve: tuple[str, ...]
    """Commands that serve the folder FOLDER."""
    choices: Mapping[Slot, Mapping[str, Write]]
    """How an entry of each kind is written, UnfitError where it cannot be; a kind that is not there cannot be run."""
    checks: tuple[Check, ...]
    """What else it cannot run, each problem as a sentence to which the way out is added."""
    linear: Mapping[Slot, str] = field(default_factory=lambda: MappingProxyType({}))
    """The module below `self_attn` or `mlp` that holds the matrix of a linear replacement."""
    values: Callable[[Shape], Choice] = field(default=lambda shape: {})
    """Keys of its config.json that the others do not have."""
    reads_by_transformers: bool = True
    """Whether it reads config.json through Transformers, which must then be told of a class for it."""

    def choice(self, slot: Slot, entry: Entry, shape: Shape) -> Choice:
        """A subblock in this consumer's words; UnfitError where it has none."""
        kind = str(entry["kind"])
        if kind not in self.choices[slot]:
            raise UnfitError(f"{self.title} has no such {slot} in DeciLM models")
        return self.choices[slot][kind](entry, shape)

    def problems(self, child: Child) -> list[str]:
        """A sentence for everything in a child that this consumer cannot run, first what stands in one layer."""
        found: list[str] = []
        for layer, block in enumerate(child.blocks):
            for slot in SLOTS:
                try:
                    self.choice(slot, block[slot], child.shape)
                except UnfitError as error:
                    way_out = _way_out(slot, block[slot], child.shape)
                    found.append(f"layer {layer} {slot}: {_shown(block[slot])}: {error}; {way_out}")
        for check in self.checks:
            found += [f"{problem}; export for another consumer, or with --format hf" for problem in check(child)]
        return found

    def tensor_name(self, name: str) -> str:
        """The name that this consumer looks for a child's tensor by."""
        for slot, module in self.linear.items():
            # Of all mixers only a linear replacement is a matrix itself.
            if name.endswith(matrix := f".{MIXERS[slot]}.weight"):
                return f"{name.removesuffix(matrix)}.{MIXERS[slot]}.{module}.weight"
        return name


def _shown(entry: Entry) -> str:
    sizes = ", ".join(f"{name}={value}" for name, value in entry.items() if name != "kind")
    return f"{entry['kind']} ({sizes})" if sizes else str(entry["kind"])


def _way_out(slot: Slot, entry: Entry, shape: Shape) -> str:
    others = [consumer.name for consumer in CONSUMERS.values() if _runs(consumer, slot, entry, shape)]
    elsewhere = f"export --for {' or '.join(others)}" if others else "export with --format hf"
    return f"{elsewhere}, or take it out of space.{slot}"


def _runs(consumer: Consumer, slot: Slot, entry: Entry, shape: Shape) -> bool:
    try:
        consumer.choice(slot, entry, shape)
    except UnfitError:
        return False
    return True


def width_of(ffn_mult: float, hidden: int) -> int:
    """The ffn width that TensorRT-LLM, SGLang and MLX make of `ffn_mult` in a model of width `hidden`."""
    width = int(2 * ffn_mult * hidden / 3)
    return -(-width // MULTIPLE) * MULTIPLE


def ffn_mult_of(width: int, hidden: int) -> float:
    """The `ffn_mult` of an ffn of `width` channels, in six decimals, which is what MLX keeps of it.

    Raises UnfitError when no factor gives the width.
    """
    ffn_mult = round(3 * width / (2 * hidden), 6)
    if width_of(ffn_mult, hidden) != width:
        raise UnfitError(
            f"its ffn_mult would give {width_of(ffn_mult, hidden)}, since it gives multiples of {MULTIPLE} only, "
            f"which `space.multiple: {MULTIPLE}` searches"
        )
    return ffn_mult


def _choice(*, absent: bool = False, linear: bool = False, **sizes: float | None) -> Choice:
    return {NoOp.name: absent, "replace_with_linear": linear, **sizes}


def _attention(entry: Entry, shape: Shape) -> Choice:
    if (heads := query_heads(entry, shape)) < shape.q_heads:
        raise UnfitError(f"DeciLM models have one count of query heads, here {shape.q_heads}, and it has {heads}")
    return _choice(n_heads_in_group=shape.q_heads // int(entry["kv_heads"]))


def _attention_no_op(entry: Entry, shape: Shape) -> Choice:
    return _choice(absent=True, n_heads_in_group=None)


def _attention_linear(entry: Entry, shape: Shape) -> Choice:
    return _choice(linear=True, n_heads_in_group=None)


def _ffn(entry: Entry, shape: Shape) -> Choice:
    return _choice(ffn_mult=ffn_mult_of(int(entry["width"]), shape.hidden))


def _ffn_no_op(entry: Entry, shape: Shape) -> Choice:
    return _choice(absent=True, ffn_mult=None)


def _ffn_linear(entry: Entry, shape: Shape) -> Choice:
    return _choice(linear=True, ffn_mult=None)


def _ffn_exact(entry: Entry, shape: Shape) -> Choice:
    # vLLM asks whether there is an ffn_mult, and None is one.
    return _choice(intermediate_size=int(entry["width"]))


def _ffn_exact_no_op(entry: Entry, shape: Shape) -> Choice:
    return _choice(absent=True)


def _linear_without_bias(write: Write, has_bias: Callable[[Shape], bool]) -> Write:
    """The writer of a linear replacement that takes a bias wherever the subblock that it replaces has one."""

    def checked(entry: Entry, shape: Shape) -> Choice:
        if has_bias(shape):
            raise UnfitError("it would look for a bias, since the parent's projections have one")
        return write(entry, shape)

    return checked


def _no_head_norms(child: Child) -> Iterator[str]:
    if child.shape.qk_norm:
        yield f"every attention: {child.shape.family} norms queries and keys, which DeciLM models do not"


def _no_attention_bias(child: Child) -> Iterator[str]:
    if child.shape.qkv_bias or child.shape.o_bias:
        yield "every attention: its projections have biases, which would be left out"


def _all_or_no_attention_bias(child: Child) -> Iterator[str]:
    if child.shape.qkv_bias != child.shape.o_bias:
        yield "every attention: three of its projections have biases and one has none; here all have or none"


def _no_ffn_bias(child: Child) -> Iterator[str]:
    if child.shape.mlp_bias:
        yield "every ffn: its projections have biases, which would be left out"


def _heads_fill_hidden(child: Child) -> Iterator[str]:
    shape = child.shape
    if shape.head_dim * shape.q_heads != shape.hidden:
        yield (
            f"every attention: {shape.q_heads} heads of {shape.head_dim} are not the model's width, {shape.hidden}; "
            "a head's width is taken as their quotient"
        )


def _some_attention(child: Child) -> Iterator[str]:
    if not any(_keeps_keys(block) for block in child.blocks):
        yield "the model: no layer has attention that keeps keys, and the cache is planned by one"


def _first_is_no_ffn(child: Child) -> Iterator[str]:
    """A layer's ffn norms its input together with the residual, which the first attention is what begins."""
    for layer, block in enumerate(child.blocks):
        if not SUBBLOCKS.of(block["attention"]).absent:
            return
        if not SUBBLOCKS.of(block["ffn"]).absent:
            yield f"layer {layer} ffn: {_shown(block['ffn'])}: it comes before any attention, where it crashes"
            return


def _same_kv_heads(child: Child) -> Iterator[str]:
    first: tuple[int, Any] | None = None
    for layer, block in enumerate(child.blocks):
        if not _keeps_keys(block):
            continue
        kv_heads = block["attention"]["kv_heads"]
        first = first or (layer, kv_heads)
        if kv_heads != first[1]:
            there = f"layer {first[0]} has {first[1]}"
            yield f"layer {layer} attention: {kv_heads} KV heads, where {there}; all layers must have one count"


def _keeps_keys(block: Block) -> bool:
    return bool(SUBBLOCKS.of(block["attention"]).masks(block["attention"]))


def _activation_of(*known: str) -> Check:
    def check(child: Child) -> Iterator[str]:
        if child.activation not in known:
            yield f"every ffn: its activation is {child.activation}; known here: {', '.join(known)}"

    return check


def _known_rope(child: Child) -> Iterator[str]:
    if child.rope_type not in _ROPE:
        yield f"every attention: its rotary embedding is of type {child.rope_type}; known here: {', '.join(_ROPE)}"


VLLM: Final = Consumer(
    name="vllm",
    title="vLLM",
    serve=("vllm serve FOLDER --trust-remote-code",),
    choices={
        "attention": {FullAttention.name: _attention, NoOp.name: _attention_no_op},
        "ffn": {GatedFfn.name: _ffn_exact, NoOp.name: _ffn_exact_no_op},
    },
    checks=(_first_is_no_ffn, _some_attention, _no_head_norms, _activation_of("silu"), _known_rope),
    values=lambda shape: {"qkv_bias": shape.qkv_bias},
)
TENSORRT_LLM: Final = Consumer(
    name="tensorrt-llm",
    title="TensorRT-LLM",
    serve=("trtllm-serve FOLDER --trust_remote_code",),
    choices={
        "attention": {FullAttention.name: _attention, Linear.name: _attention_linear, NoOp.name: _attention_no_op},
        "ffn": {GatedFfn.name: _ffn, Linear.name: _ffn_linear, NoOp.name: _ffn_no_op},
    },
    checks=(
        _no_head_norms, _no_attention_bias, _no_ffn_bias, _activation_of("silu"), _known_rope,
    ),
    linear={"attention": "linear_attn", "ffn": "linear_mlp"},
)  # fmt: skip
SGLANG: Final = Consumer(
    name="sglang",
    title="SGLang",
    serve=("python -m sglang.launch_server --model-path FOLDER --trust-remote-code",),
    choices={
        "attention": {FullAttention.name: _attention, NoOp.name: _attention_no_op},
        "ffn": {GatedFfn.name: _ffn, NoOp.name: _ffn_no_op},
    },
    checks=(
        _same_kv_heads, _first_is_no_ffn, _some_attention, _no_head_norms, _all_or_no_attention_bias, _no_ffn_bias,
        _activation_of("silu"), _known_rope,
    ),
)  # fmt: skip
MLX: Final = Consumer(
    name="mlx",
    title="MLX",
    serve=('mlx_lm.generate --model FOLDER --prompt "..."', "mlx_lm.server --model FOLDER"),
    choices={
        "attention": {
            FullAttention.name: _attention,
            Linear.name: _linear_without_bias(_attention_linear, lambda shape: shape.o_bias),
            NoOp.name: _attention_no_op,
        },
        "ffn": {
            GatedFfn.name: _ffn,
            Linear.name: _linear_without_bias(_ffn_linear, lambda shape: shape.mlp_bias),
            NoOp.name: _ffn_no_op,
        },
    },
    checks=(
        _some_attention, _no_head_norms, _all_or_no_attention_bias, _heads_fill_hidden,
        _activation_of("silu", "relu", "gelu", "gelu_new"), _known_rope,
    ),
    linear={"attention": "linear", "ffn": "linear"},
    reads_by_transformers=False,
)  # fmt: skip

CONSUMERS: Final[Mapping[str, Consumer]] = MappingProxyType(
    {consumer.name: consumer for consumer in (VLLM, TENSORRT_LLM, SGLANG, MLX)}
)
"""Every consumer by the value of `--for`, in the order messages list them."""
