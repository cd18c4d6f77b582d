"""From a parent's config.json to its `Shape`, with a sentence for everything that cannot be."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.nas.errors import UserError
from inlay.nas.families.family import CHILD, FAMILIES, Family
from inlay.nas.families.shape import DTYPE_BYTES, SLOTS, Entry, Shape
from inlay.nas.modeling.experts_inlay import parent_ffn
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.modeling.window_inlay import parent_attention


def read_config(folder: Path) -> dict[str, Any]:
    """The parent's config.json as it stands. Raises `UserError` when it is missing, not JSON, or no object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        packed = sorted(folder.glob("*.gguf"))
        if len(packed) == 1:
            raise UserError(
                f"parent: the folder `{folder}` has no config.json, but a GGUF file; name that file: "
                f"`parent: {packed[0]}`."
            ) from None
        raise UserError(
            f"parent: the folder `{folder}` has no config.json; give a model folder as `save_pretrained` writes it."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"parent: `{path}` is not JSON ({error}); copy it again from the model's source.") from None
    if not isinstance(config, dict):
        raise UserError(f"parent: `{path}` holds no JSON object; copy it again from the model's source.")
    return config


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that config.json names, for a child of another search the one that it was made from.

    Raises `UserError` with the list of families, or for quantised weights.
    """
    name = str(config.get("model_type"))
    made_of = str(config.get("family")) if name == CHILD else name
    if made_of not in FAMILIES:
        text = f"family `{made_of}` in config.json" if name == CHILD else f"model type `{name}`"
        raise UserError(
            f"parent: {text} is not supported; the supported families are {', '.join(FAMILIES)}, "
            "and children of other searches."
        )
    for key in () if name == CHILD else FAMILIES[name].foreign_keys:
        if key in config:
            raise UserError(
                f"parent: a `{name}` with `{key}` in config.json is another family to Transformers, and not supported; "
                f"the supported families are {', '.join(FAMILIES)}."
            )
    if config.get("quantization_config") is not None:
        raise UserError(
            "parent: the weights are quantised (config.json has `quantization_config`); "
            "give the float32, bfloat16 or float16 model that they were made from."
        )
    return FAMILIES[made_of]


def check_unpacked(config: Mapping[str, Any]) -> None:
    """Raises `UserError` for a folder whose matrices are packed: there is nothing to search from in it."""
    if config.get("packed"):
        raise UserError(
            "parent: its matrices are packed in 2:4 (config.json has `packed`); give the search's own `child` folder, "
            "or what `inlay export --format hf` writes."
        )


def shape_of(config: Mapping[str, Any], stored_dtype: str) -> Shape:
    """The parent's sizes. `stored_dtype` is what its tensors are stored in, taken when config.json names no dtype.

    Transformers loads a model in the dtype of its config; the shape follows that rule. Raises `UserError` naming the
    key of config.json that is wrong.
    """
    family = family_of(config)
    is_child = config["model_type"] == CHILD
    values = {**family.defaults, **(_base(config) if is_child else {}), **config}
    q_heads = _count(values, "num_attention_heads")
    kv_heads = q_heads if values["num_key_value_heads"] is None else _count(values, "num_key_value_heads")
    hidden = _count(values, "hidden_size")
    if q_heads % kv_heads:
        raise _wrong("num_key_value_heads", kv_heads, f"must divide `num_attention_heads`, {q_heads}")
    if family.hidden_multiple_of_heads and hidden % q_heads:
        raise _wrong("hidden_size", hidden, f"must be a multiple of `num_attention_heads`, {q_heads}")
    vocab = _count(values, "vocab_size")
    _check_special_ids(config, vocab)
    return Shape(
        family=family.name,
        hidden=hidden,
        q_heads=q_heads,
        head_dim=hidden // q_heads if values["head_dim"] is None else _count(values, "head_dim"),
        vocab=vocab,
        tied=_flag(values, "tie_word_embeddings"),
        qkv_bias=_flag(values, family.qkv_bias),
        o_bias=_flag(values, family.o_bias),
        qk_norm=family.qk_norm,
        mlp_bias=_flag(values, family.mlp_bias),
        dtype=_dtype(config, stored_dtype),
        rotation=_rotation(config),
        max_positions=_count(values, "max_position_embeddings"),
        blocks=_child_blocks(config) if is_child else _parent_blocks(family, values, kv_heads),
    )


def _base(config: Mapping[str, Any]) -> Mapping[str, Any]:
    base = config.get("base")
    if not isinstance(base, Mapping):
        raise _wrong("base", base, "must hold the sizes that the layers share")
    return base


def _child_blocks(config: Mapping[str, Any]) -> tuple[Mapping[Slot, Entry], ...]:
    """A child's own blocks, as its configuration would check them."""
    blocks = config.get("blocks")
    if not isinstance(blocks, list) or not blocks:
        raise _wrong("blocks", blocks, "must list one block for each layer")
    for layer, block in enumerate(blocks):
        if not isinstance(block, Mapping) or set(block) != set(SLOTS):
            raise _wrong(f"blocks[{layer}]", block, f"must hold {' and '.join(SLOTS)}")
    try:
        return tuple(
            {slot: SUBBLOCKS.check(slot, block[slot], f"layer {layer} {slot}", _base(config)) for slot in SLOTS}
            for layer, block in enumerate(blocks)
        )
    except ValueError as error:
        raise UserError(f"parent: `blocks` in config.json: {error}; export the child again.") from None


def _parent_blocks(family: Family, values: Mapping[str, Any], kv_heads: int) -> tuple[Mapping[Slot, Entry], ...]:
    for key in ("intermediate_size", *(each for each in _OF_EXPERTS if values.get(each) is not None)):
        _count(values, key)
    _check_experts(values)
    windows = _windows(family, values, _count(values, "num_hidden_layers"))
    return tuple(
        {"attention": parent_attention(kv_heads, window), "ffn": parent_ffn(values, layer)}
        for layer, window in enumerate(windows)
    )


_OF_EXPERTS = (
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"
)  # fmt: skip


def _check_experts(values: Mapping[str, Any]) -> None:
    """Every token takes experts that there are, and layers without them are numbers of layers."""
    experts = values.get("num_local_experts") or values.get("num_experts")
    if experts and values["num_experts_per_tok"] > experts:
        raise _wrong("num_experts_per_tok", values["num_experts_per_tok"], f"must not be above the {experts} experts")
    dense = values.get("mlp_only_layers")
    if dense is not None and not (isinstance(dense, list) and all(isinstance(layer, int) for layer in dense)):
        raise _wrong("mlp_only_layers", dense, "must list numbers of layers")


def _windows(family: Family, values: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    window = None if values.get("sliding_window") is None else _count(values, "sliding_window")
    if family.sliding == "none":
        return (None,) * num_layers
    if family.sliding == "all":
        return (window,) * num_layers
    window = window if _flag(values, "use_sliding_window") else None
    if family.sliding == "used":
        return (window,) * num_layers
    types = values["layer_types"]
    if types is None:
        first = _count(values, "max_window_layers", least=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        raise _wrong("layer_types", types, f"must list one type for each of {num_layers} layers")
    for layer_type in types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise _wrong("layer_types", layer_type, "may only hold `full_attention` and `sliding_attention`")
        if layer_type == "sliding_attention" and window is None:
            raise _wrong("layer_types", layer_type, "needs `use_sliding_window: true` and a `sliding_window`")
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in types)


def _rotation(config: Mapping[str, Any]) -> str:
    """`rope_parameters` as Transformers 5 writes it, or `rope_scaling` as older ones did."""
    held = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(held, Mapping):
        raise _wrong("rope_parameters", held, "must hold the parameters of the rotation")
    return str(held.get("rope_type") or held.get("type") or "default")


def _dtype(config: Mapping[str, Any], stored: str) -> str:
    named = config.get("dtype") or config.get("torch_dtype") or stored
    if named not in DTYPE_BYTES:
        raise _wrong("dtype", named, f"must be one of {', '.join(DTYPE_BYTES)}")
    return str(named)


def _check_special_ids(config: Mapping[str, Any], vocab: int) -> None:
    for key in ("bos_token_id", "eos_token_id"):
        value = config.get(key)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (isinstance(token, int) and 0 <= token < vocab):
                raise _wrong(key, token, f"must be a token below `vocab_size`, {vocab}")


def _count(values: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(key, value, f"must be a whole number of at least {least}")
    return value


def _flag(values: Mapping[str, Any], key: bool | str) -> bool:
    value = key if isinstance(key, bool) else values[key]
    if not isinstance(value, bool):
        raise _wrong(str(key), value, "must be true or false")
    return value


def _wrong(key: str, value: Any, rule: str) -> UserError:
    return UserError(f"parent: `{key}` in config.json is `{value}`, but it {rule}; correct config.json.")
