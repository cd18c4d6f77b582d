"""The configuration of an inlay model: a parent family, what its layers share, and one block a layer.

This file is copied beside exported weights, so it imports only transformers and its neighbours; and of Transformers
only what is there when its auto classes are imported (registration.py), the families' own configs later.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from .experts_inlay import parent_ffn
from .kinds_inlay import SUBBLOCKS
from .subblock_inlay import SLOTS
from .window_inlay import parent_attention

FAMILIES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "mixtral": "MixtralConfig",
    "qwen3_moe": "Qwen3MoeConfig",
}

_REQUIRED_BASE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_OPTIONAL_BASE = ("hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range", "attention_dropout")
_FAMILY_BASE: dict[str, tuple[str, ...]] = {
    "llama": ("attention_bias", "mlp_bias"),
    "mistral": (),
    "qwen2": (),
    "qwen3": ("attention_bias",),
    "mixtral": (),
    "qwen3_moe": ("attention_bias", "norm_topk_prob"),
}


class InlayConfig(PreTrainedConfig):
    """What an inlay model is made of; every value is checked when it is built.

    `family` names the parent's family, `base` holds the fields of the family's own config that all layers share (sizes,
    activation, norm epsilon), and `blocks` one `{"attention": entry, "ffn": entry}` a layer. Raises ValueError naming
    the layer and the value when a block does not fit the family's sizes. `ends_format` is what an engine stores
    embedding and head in, None: as everything; `kv_format` what it stores keys and values in, None: as it is told.
    `packed`: matrices whose entry names a format stay packed in memory.
    """

    model_type = "inlay"
    has_no_defaults_at_init: ClassVar[bool] = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    family: str
    base: dict[str, Any]
    blocks: list[dict[str, Any]]
    vocab_size: int
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    ends_format: str | None = None
    kv_format: str | None = None
    packed: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family is {self.family!r}; inlay knows {', '.join(FAMILIES)}")
        self.base = _checked_base(self.family, self.base)
        self.blocks = _checked_blocks(self.blocks, self.base)
        # The library fills in defaults by writing into the dict it is given.
        self.rope_parameters = copy.deepcopy(self.rope_parameters)
        super().__post_init__(**kwargs)

    @classmethod
    def from_parent(cls, parent: PreTrainedConfig) -> InlayConfig:
        """The configuration whose every block is the parent's own: a child's is its own already.

        Raises ValueError when the family is not known.
        """
        if isinstance(parent, cls):
            return parent
        family = parent.model_type
        if family not in FAMILIES:
            raise ValueError(f"the parent's model_type is {family!r}; inlay knows {', '.join(FAMILIES)}")
        base = {name: getattr(parent, name) for name in _base_fields(family) if hasattr(parent, name)}
        base["head_dim"] = base.get("head_dim") or parent.hidden_size // parent.num_attention_heads
        told = parent.to_dict()
        blocks = [
            {"attention": _parent_attention(parent, layer), "ffn": parent_ffn(told, layer)}
            for layer in range(parent.num_hidden_layers)
        ]
        shared = ("vocab_size", "rope_parameters", "tie_word_embeddings", "use_cache")
        special = ("pad_token_id", "bos_token_id", "eos_token_id")
        values = {name: getattr(parent, name) for name in (*shared, *special, "dtype")}
        return cls(family=family, base=base, blocks=blocks, **values)

    def with_blocks(
        self, blocks: Sequence[Mapping[str, Any]], ends_format: str | None = None, kv_format: str | None = None
    ) -> InlayConfig:
        """This configuration with other blocks, and with embedding and head, and keys and values, in those formats; all
        else, the attention implementation too, is kept."""
        values = self.to_dict()
        values.pop("model_type")
        values.pop("architectures", None)
        values["blocks"] = list(blocks)
        values["ends_format"], values["kv_format"] = ends_format, kv_format
        values["attn_implementation"] = self._attn_implementation
        return type(self)(**values)

    def family_config(self) -> PreTrainedConfig:
        """The family's own config with what all layers share; KV heads and widths in it are the parent's."""
        values: dict[str, Any] = {**self.base, "num_hidden_layers": self.num_hidden_layers}
        for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
            values[name] = getattr(self, name)
        # Windows are inlay's own masks and caches, so the family's modules are built as full attention.
        if self.family in ("mistral", "mixtral"):
            values["sliding_window"] = None
        values["rope_parameters"] = copy.deepcopy(self.rope_parameters)
        config = family_config_class(self.family)(**values)
        config._attn_implementation = self._attn_implementation
        return config

    @property
    def hidden_size(self) -> int:
        """Model width."""
        return int(self.base["hidden_size"])

    @property
    def intermediate_size(self) -> int:
        """The parent's ffn width; a layer's own is in its block."""
        return int(self.base["intermediate_size"])

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers, those without any subblock included."""
        return len(self.blocks)

    @property
    def num_attention_heads(self) -> int:
        """Query heads of every attention whose block does not say fewer."""
        return int(self.base["num_attention_heads"])

    @property
    def num_key_value_heads(self) -> int:
        """The parent's KV heads; a layer's own are in its block."""
        return int(self.base["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return int(self.base["head_dim"])

    @property
    def max_position_embeddings(self) -> int:
        """The parent's longest context in tokens."""
        return int(self.base["max_position_embeddings"])

    @property
    def rms_norm_eps(self) -> float:
        """Epsilon of every norm."""
        return float(self.base["rms_norm_eps"])

    @property
    def initializer_range(self) -> float:
        """Standard deviation of freshly initialised weights."""
        return float(self.base["initializer_range"])

    @property
    def layer_types(self) -> list[str]:
        """What stock caches keep for each layer: every key, or nothing ("moe" is their word for no attention).

        A model without any attention says "full_attention" throughout: stock caches refuse to have no layer at all.
        """
        has_keys = [bool(SUBBLOCKS.of(block["attention"]).masks(block["attention"])) for block in self.blocks]
        return ["full_attention" if has or not any(has_keys) else "moe" for has in has_keys]


def family_config_class(family: str) -> type[PreTrainedConfig]:
    """Transformers' own config class of a family."""
    cls: type[PreTrainedConfig] = getattr(import_module("transformers"), FAMILIES[family])
    return cls


def _base_fields(family: str) -> tuple[str, ...]:
    return (*_REQUIRED_BASE, *_OPTIONAL_BASE, *_FAMILY_BASE[family])


def _checked_base(family: str, base: Any) -> dict[str, Any]:
    if not isinstance(base, Mapping):
        raise ValueError(f"base is {base!r}; it must hold the fields that the layers of {family} share")
    unknown = sorted(set(base) - set(_base_fields(family)))
    if unknown:
        raise ValueError(f"base has {', '.join(unknown)}, which {family} does not take")
    for name in _REQUIRED_BASE:
        value = base.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"base.{name} is {value!r}; it must be an integer of at least 1")
    missing = [name for name in _base_fields(family) if name not in base]
    defaults = family_config_class(family)()
    return {**base, **{name: getattr(defaults, name) for name in missing}}


def _checked_blocks(blocks: Any, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(blocks, Sequence) or isinstance(blocks, str) or not blocks:
        raise ValueError(f"blocks is {blocks!r}; it must hold one block a layer")
    checked: list[dict[str, Any]] = []
    for layer_index, block in enumerate(blocks):
        if not isinstance(block, Mapping) or set(block) != set(SLOTS):
            raise ValueError(f"layer {layer_index}: a block is {{'attention': ..., 'ffn': ...}}; given {block!r}")
        where = f"layer {layer_index}"
        checked.append({slot: SUBBLOCKS.check(slot, block[slot], f"{where} {slot}", base) for slot in SLOTS})
    return checked


def _parent_attention(parent: PreTrainedConfig, layer_index: int) -> dict[str, Any]:
    window = getattr(parent, "sliding_window", None)
    layer_types = getattr(parent, "layer_types", None)
    if layer_types is not None and layer_types[layer_index] == "full_attention":
        window = None
    return parent_attention(parent.num_key_value_heads, window)
