"""From the fields of a GGUF file to the config.json of the same model."""

import math
from collections.abc import Mapping
from typing import Any, Final

from inlay.nas.errors import UserError
from inlay.nas.families.family import FAMILIES
from inlay.nas.families.gguf.header import Header
from inlay.nas.families.gguf.weights import EMBEDDING_HERE, HEAD_HERE, ROTATION, unpacked_dtype

_ARCHITECTURES: Final = ("llama", "qwen2", "qwen3")
"""By the names that files give; Mistral's are called llama there."""
_OTHER_FUNCTIONS: Final = (
    "expert_count",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)
"""Fields of models that compute something else under the same name, where they are not 0."""
_PLAIN_YARN: Final = frozenset({"type", "factor", "original_context_length", "finetuned"})
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all Llamas since 3.1 have in common; a file only has what comes of it."""


def config_of(header: Header) -> dict[str, Any]:
    """The config.json of the model in a file, as Transformers writes it.

    A file says `llama` for Mistral's models too, and not whether they slide: one with `attention.sliding_window`
    becomes a mistral, every other a llama, which computes the same as a Mistral without a window. Raises `UserError`
    for another architecture, a file in parts, layers that differ, or a rotation that Transformers does not have.
    """
    fields = _Fields(header)
    if (parts := header.get("split.count", int, 0)) > 1:
        raise UserError(
            f"parent: the file `{header.path}` is one of {parts} parts; join them by `llama-gguf-split --merge`."
        )
    if EMBEDDING_HERE not in header.tensors:
        raise header.damaged(f"it lacks the tensor `{EMBEDDING_HERE}`")
    vocab = header.tensors[EMBEDDING_HERE].shape[0]
    if len(header.tokens) > vocab:
        raise header.damaged(f"it has {len(header.tokens):,} tokens and an embedding of {vocab:,} rows")
    hidden, heads = fields.count("embedding_length"), fields.count("attention.head_count")
    kv_heads = fields.count("attention.head_count_kv", heads)
    if heads % kv_heads or (hidden % heads and fields.architecture == "llama"):
        raise header.damaged(f"a model {hidden} wide with {heads} query and {kv_heads} key/value heads is none")
    head_dim = fields.count("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := fields.count(key, head_dim)) != head_dim:
            raise fields.unsupported(f"`{key}` is {size} where its heads are {head_dim} wide")
    window = fields.count("attention.sliding_window") if fields.get("attention.sliding_window") else None
    family = "mistral" if fields.architecture == "llama" and window else fields.architecture
    config = {
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": fields.count("block_count"),
        "intermediate_size": fields.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": fields.count("context_length"),
        "rms_norm_eps": _shortest(fields.number("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rotation(fields, head_dim),
        "hidden_act": "silu",
        "tie_word_embeddings": HEAD_HERE not in header.tensors,
        "dtype": unpacked_dtype(header),
        "bos_token_id": header.token_id("bos"),
        "eos_token_id": header.token_id("eos"),
    }
    if family == "mistral":
        return config | {"sliding_window": window}
    if family == "llama":
        biases = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
        return config | {key: name in header.tensors for key, name in biases.items()}
    return config | {"use_sliding_window": False, "sliding_window": None}


class _Fields:
    """The fields of the architecture, by their names behind it."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.architecture = header.get("general.architecture", str, "")
        if self.architecture not in _ARCHITECTURES:
            raise UserError(
                f"parent: the file `{header.path}` holds a model of the architecture `{self.architecture}`; "
                f"the supported families are {', '.join(FAMILIES)}."
            )
        for key in _OTHER_FUNCTIONS:
            if self.get(key):
                raise self.unsupported(f"`{key}` is {self.get(key)}")

    def get(self, key: str) -> Any:
        return self.header.fields.get(f"{self.architecture}.{key}")

    def group(self, prefix: str) -> dict[str, Any]:
        """Fields below a name, by what stands behind it."""
        start = f"{self.architecture}.{prefix}."
        return {key.removeprefix(start): value for key, value in self.header.fields.items() if key.startswith(start)}

    def count(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if isinstance(value, list):
            if len(set(value)) > 1:
                raise self.unsupported(f"its layers differ in `{key}`")
            value = value[0] if value else None
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.header.damaged(f"its `{self.architecture}.{key}` is {value}, not a number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, float | int) or not math.isfinite(value) or value <= 0:
            raise self.header.damaged(f"its `{self.architecture}.{key}` is {value}, not a positive number")
        return float(value)

    def unsupported(self, what: str) -> UserError:
        return UserError(
            f"parent: the model in `{self.header.path}` is no plain {self.architecture}: {what}; "
            f"the supported families are {', '.join(FAMILIES)}."
        )


def _rotation(fields: _Fields, head_dim: int) -> dict[str, Any]:
    rotation: dict[str, Any] = {"rope_type": "default", "rope_theta": _shortest(fields.number("rope.freq_base", 1e4))}
    scaling = fields.group("rope.scaling")
    if ROTATION in fields.header.tensors:
        return rotation | _llama3(fields, rotation["rope_theta"], head_dim)
    scaled = scaling.get("type", "none")
    if scaled == "none":
        return rotation
    if scaled not in ("linear", "yarn") or not scaling.keys() <= _PLAIN_YARN:
        raise fields.unsupported(
            f"its rotation is scaled by {', '.join(f'{k} {v}' for k, v in sorted(scaling.items()))}"
        )
    rotation |= {"rope_type": scaled, "factor": _shortest(fields.number("rope.scaling.factor"))}
    if scaled == "yarn":
        rotation["original_max_position_embeddings"] = fields.count("rope.scaling.original_context_length")
    return rotation


def _llama3(fields: _Fields, base: float, head_dim: int) -> dict[str, Any]:
    """The parameters whose divisors are the file's."""
    import numpy as np

    place = fields.header.tensors[ROTATION]
    if place.format != "F32" or place.shape != (head_dim // 2,):
        raise fields.header.damaged(f"its `{ROTATION}` is {place.format} {list(place.shape)}")
    found = np.fromfile(fields.header.path, "<f4", head_dim // 2, offset=place.offset)
    parameters = {"rope_type": "llama3", "factor": _shortest(float(found.max())), **_LLAMA3}
    if not np.allclose(found, _divisors(parameters, base, head_dim), rtol=1e-4):
        raise fields.unsupported(f"its `{ROTATION}` is not that of a Llama 3")
    return parameters


def _divisors(parameters: Mapping[str, Any], base: float, head_dim: int) -> list[float]:
    """What Transformers divides frequencies by: short waves by 1, long ones by the factor, between them a mixture."""
    factor, low, high = (parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    divisors = []
    for pair in range(head_dim // 2):
        waves = parameters["original_max_position_embeddings"] / (2 * math.pi * base ** (2 * pair / head_dim))
        kept = min(max((waves - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (kept + (1 - kept) / factor))
    return divisors


def _shortest(value: float) -> float:
    """The number of fewest digits that a float32 of the file is read from: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
