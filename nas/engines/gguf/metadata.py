"""The fields of a file beside its tokenizer: sizes, layer by layer where they differ, and the rotation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from inlay.nas.engines.gguf.fields import Field, Kind
from inlay.nas.engines.gguf.packing import ROTATIONS, Packed
from inlay.nas.formats.gguf import GGUF

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig

Value = str | int | float | Sequence[int]


@dataclass(frozen=True)
class Rotation:
    """How positions are encoded.

    Args:
        base: theta.
        fields: what says so behind the architecture's name.
        divisors: what each of the head_dim / 2 frequencies is divided by, where that is a tensor of its own.
    """

    base: float
    fields: Mapping[str, Value]
    divisors: tuple[float, ...] = ()


def rotation_of(parameters: Mapping[str, Any] | None, head_dim: int) -> Rotation:
    """The rotation that a config's `rope_parameters` describe.

    Raises:
        ValueError: a kind that llama.cpp does not have; it names it.
    """
    values = dict(parameters or {})
    form, base = str(values.get("rope_type") or "default"), float(values.get("rope_theta") or 10_000.0)
    if form not in ROTATIONS:
        raise ValueError(f"its rope_type is {form}, and llama.cpp has {', '.join(ROTATIONS)}")
    if form == "default":
        return Rotation(base, {})
    factor = float(values["factor"])
    if form == "linear":
        return Rotation(base, {"rope.scaling.type": "linear", "rope.scaling.factor": factor})
    original = int(values["original_max_position_embeddings"])
    if form == "yarn":
        fields: dict[str, Value] = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
        return Rotation(base, fields | {"rope.scaling.original_context_length": original})
    return Rotation(base, {}, _divisors(base, head_dim, factor, values, original))


def _divisors(base: float, head_dim: int, factor: float, values: Mapping[str, Any], original: int) -> tuple[float, ...]:
    """Llama 3's: 1 for short waves, `factor` for long ones, and between them what mixes the frequencies linearly (as
    Transformers' `_compute_llama3_parameters`)."""
    low, high = float(values["low_freq_factor"]), float(values["high_freq_factor"])
    divisors = []
    for pair in range(head_dim // 2):
        wave = 2 * math.pi * base ** (2 * pair / head_dim)
        if wave < original / high:
            divisors.append(1.0)
        elif wave > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)


def model_fields(packed: Packed, rotation: Rotation, context: int, norm_epsilon: float, name: str) -> list[Field]:
    """What llama.cpp needs to know of a model, in the order that files have it.

    Args:
        packed: its layers.
        rotation: of its positions.
        context: the longest sequence that it was made for, tokens.
        norm_epsilon: of its norms.
        name: for people.
    """
    shape, layers = packed.shape, packed.layers
    head_dim = shape.head_dim
    own: dict[str, Value] = {
        "block_count": len(layers),
        "context_length": context,
        "embedding_length": shape.hidden,
        "vocab_size": shape.vocab,
        "feed_forward_length": _by_layer([layer.width for layer in layers]),
        "attention.head_count": _by_layer([layer.heads for layer in layers]),
        "attention.head_count_kv": _by_layer([layer.kv_heads for layer in layers]),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": norm_epsilon,
        "rope.dimension_count": head_dim,
        "rope.freq_base": rotation.base,
        **rotation.fields,
    }
    values: dict[str, Value] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": GGUF[_commonest(packed)].file_type,
        "general.quantization_version": 2,
        **{f"{packed.arch}.{key}": value for key, value in own.items()},
    }
    return [_field(key, value) for key, value in values.items()]


def described(packed: Packed, config: InlayConfig, name: str) -> tuple[Rotation, list[Field]]:
    """The rotation and the fields of a model of this configuration; arguments as `model_fields`.

    Raises:
        ValueError: llama.cpp does not have the rotation of its positions.
    """
    rotation = rotation_of(config.rope_parameters, config.head_dim)
    return rotation, model_fields(packed, rotation, config.max_position_embeddings, config.rms_norm_eps, name)


def _commonest(packed: Packed) -> str:
    """The format of most of its numbers: the file's type, which programs show."""
    numbers: Counter[str] = Counter()
    for tensor in packed.tensors:
        numbers[tensor.format] += prod(tensor.shape)
    return numbers.most_common(1)[0][0]


def _field(key: str, value: Value) -> Field:
    match value:
        case str():
            return Field(key, value, Kind.STRING)
        case int():
            return Field(key, value, Kind.UINT32)
        case float():
            return Field(key, value, Kind.FLOAT32)
        case _:
            return Field(key, list(value), Kind.ARRAY, Kind.UINT32)


def _by_layer(values: Sequence[int]) -> Value:
    """One number where all layers are alike, as programs beside llama.cpp expect it."""
    return values[0] if len(set(values)) == 1 else list(values)
