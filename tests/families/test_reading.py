"""The torch-free reading of config.json against Transformers' own config classes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from inlay.nas.errors import UserError
from inlay.nas.families import FAMILIES, Shape, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.families.reading import shape_of
from inlay.nas.families.shape import SLOTS
from inlay.nas.modeling import InlayConfig

OF_EXPERTS = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}
"""Families with experts, and the key of config.json that counts them."""


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """config.json of a small model, with any of its keys left out so that defaults count."""
    layers = draw(st.integers(1, 4))
    heads = draw(st.sampled_from([1, 2, 4]))
    values: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": heads * draw(st.sampled_from([4, 6])),
        "intermediate_size": draw(st.integers(1, 40)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([None, 1, heads])),
        "head_dim": draw(st.sampled_from([4, 10])),
        "vocab_size": draw(st.integers(3, 50)),
        "max_position_embeddings": draw(st.integers(1, 90)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "sliding_window": draw(st.sampled_from([None, 5])),
        "use_sliding_window": draw(st.booleans()),
        "max_window_layers": draw(st.integers(0, 5)),
        "dtype": draw(st.sampled_from([None, "bfloat16", "float16"])),
        "torch_dtype": draw(st.sampled_from([None, "float32"])),
    }
    required = {"num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"}
    left_out = draw(st.sets(st.sampled_from(sorted(set(values) - required))))
    config = {key: value for key, value in values.items() if key not in left_out}
    config["model_type"] = family = draw(st.sampled_from(list(FAMILIES)))
    if family == "llama":
        config.pop("sliding_window", None)
    if family in ("mistral", *OF_EXPERTS) and config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = 1
    if family in OF_EXPERTS:
        config |= {OF_EXPERTS[family]: draw(st.integers(2, 5)), "num_experts_per_tok": draw(st.integers(1, 2))}
    if family == "qwen3_moe":
        config["moe_intermediate_size"] = draw(st.integers(1, 9))
        config["mlp_only_layers"] = draw(st.sampled_from([None, [0]]))
    return config


def shape_by_transformers(config: dict[str, Any]) -> dict[str, Any]:
    theirs = AutoConfig.for_model(**config)
    ours = InlayConfig.from_parent(theirs)
    return {
        "hidden": ours.hidden_size,
        "q_heads": ours.num_attention_heads,
        "head_dim": ours.head_dim,
        "vocab": ours.vocab_size,
        "tied": ours.tie_word_embeddings,
        "dtype": "float32" if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."),
        "max_positions": ours.max_position_embeddings,
        "blocks": tuple(ours.blocks),
    }


@settings(max_examples=150, deadline=None)
@given(configs())
def test_shape_is_what_transformers_makes_of_the_config(config: dict[str, Any]) -> None:
    shape = shape_of(config, "float32")
    expected = shape_by_transformers(config)
    assert {name: getattr(shape, name) for name in expected} == expected


@settings(max_examples=25, deadline=None)
@given(configs())
def test_tensors_are_what_transformers_builds(config: dict[str, Any]) -> None:
    config = {"vocab_size": 11, "intermediate_size": 7, **config}
    shape = shape_of(config, "float32")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert by_two(all_tensors(shape)) == expected


def by_two(tensors: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """All experts of a layer in two tensors, as Transformers' classes hold what files hold apart."""
    found: dict[str, tuple[int, ...]] = {}
    for name, size in tensors.items():
        before, experts, behind = name.partition(".experts.")
        number, _, part = behind.partition(".")
        if not experts:
            found[name] = size
        elif part == "gate_proj.weight":
            found[f"{before}.experts.gate_up_proj"] = (int(number) + 1, 2 * size[0], size[1])
        elif part == "down_proj.weight":
            found[f"{before}.experts.down_proj"] = (int(number) + 1, *size)
    return found


def all_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    tensors = ends_tensors(shape)
    for layer in range(shape.num_layers):
        for slot in SLOTS:
            entry = shape.parent_entry(layer, slot)
            tensors |= {layer_prefix(layer) + name: size for name, size in subblock_tensors(shape, slot, entry).items()}
    return tensors


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"num_key_value_heads": 3}, "`num_key_value_heads` in config.json is `3`, but it must divide"),
        ({"hidden_size": 30}, "`hidden_size` in config.json is `30`, but it must be a multiple of"),
        ({"hidden_size": 0}, "`hidden_size` in config.json is `0`, but it must be a whole number of at least 1"),
        ({"hidden_size": "64"}, "`hidden_size` in config.json is `64`, but it must be a whole number"),
        ({"intermediate_size": True}, "`intermediate_size` in config.json is `True`"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` in config.json is `1`, but it must be true or false"),
        ({"dtype": "float8_e4m3fn"}, "`dtype` in config.json is `float8_e4m3fn`, but it must be one of float32"),
        ({"bos_token_id": 288}, "`bos_token_id` in config.json is `288`, but it must be a token below `vocab_size`"),
        ({"eos_token_id": [2, -1]}, "`eos_token_id` in config.json is `-1`"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention"]},
            "`layer_types` in config.json is `['full_attention']`, but it must list one type for each of 2 layers",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "chunked_attention"]},
            "`layer_types` in config.json is `chunked_attention`, but it may only hold",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
            "`layer_types` in config.json is `sliding_attention`, but it needs `use_sliding_window: true`",
        ),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        (
            {"model_type": "gpt2"},
            "model type `gpt2` is not supported; the supported families are llama, mistral, qwen2",
        ),
        ({"model_type": None}, "model type `None` is not supported"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"] * 2},
            "a `mistral` with `layer_types` in config.json is another family to Transformers",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(changed: dict[str, Any], sentence: str) -> None:
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 288,
    }
    with pytest.raises(UserError) as caught:
        shape_of({**config, **changed}, "float32")
    assert str(caught.value).startswith("parent: ")
    assert sentence in str(caught.value)
