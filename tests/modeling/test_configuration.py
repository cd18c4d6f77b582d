"""What a configuration takes, keeps and refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from inlay.nas.modeling import InlayConfig
from inlay.nas.modeling.registration import register

LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=97,
    rope_theta=5000.0,
    eos_token_id=[2, 3],
    tie_word_embeddings=True,
)


@pytest.fixture
def values() -> dict[str, Any]:
    """Arguments of a right configuration, free to be spoiled."""
    config = InlayConfig.from_parent(LLAMA)
    kept = ("family", "base", "blocks", "vocab_size", "rope_parameters")
    return copy.deepcopy({name: getattr(config, name) for name in kept})


def test_of_a_parent() -> None:
    config = InlayConfig.from_parent(LLAMA)
    assert config.model_type == "inlay"
    assert (config.family, config.hidden_size, config.num_hidden_layers) == ("llama", 32, 3)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert (config.vocab_size, config.intermediate_size, config.tie_word_embeddings) == (97, 48, True)
    assert config.eos_token_id == [2, 3]
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5000.0}
    own = {"attention": {"kind": "full", "kv_heads": 2}, "ffn": {"kind": "gated", "width": 48}}
    assert config.blocks == [own] * 3


def test_an_entry_may_say_its_format(values: dict[str, Any]) -> None:
    values["blocks"][1]["ffn"]["format"] = "q4_K"
    assert InlayConfig(**values).blocks[1]["ffn"] == {"kind": "gated", "width": 48, "format": "q4_K"}
    for wrong in ({"kind": "gated", "width": 48, "format": 4}, {"kind": "no_op", "format": "q4_K"}):
        values["blocks"][1]["ffn"] = wrong
        with pytest.raises(ValueError, match=r"layer 1 ffn: .* has a format that is no name, or nothing to store"):
            InlayConfig(**values)


def test_windows_of_parents() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    mistral = InlayConfig.from_parent(MistralConfig(sliding_window=7, **sizes))
    window = {"kind": "window", "kv_heads": 2, "window": 7, "sinks": 0}
    assert [block["attention"] for block in mistral.blocks] == [window] * 3
    full = {"kind": "full", "kv_heads": 2}
    without = InlayConfig.from_parent(MistralConfig(sliding_window=None, **sizes))
    assert [block["attention"] for block in without.blocks] == [full] * 3
    unused = InlayConfig.from_parent(Qwen2Config(sliding_window=7, use_sliding_window=False, **sizes))
    assert [block["attention"] for block in unused.blocks] == [full] * 3
    some = InlayConfig.from_parent(Qwen2Config(sliding_window=7, use_sliding_window=True, max_window_layers=2, **sizes))
    assert [block["attention"] for block in some.blocks] == [full, full, window]


def test_head_dim_of_its_own() -> None:
    config = InlayConfig.from_parent(Qwen3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2))
    assert config.head_dim == 128


def test_round_trip(tmp_path: Path) -> None:
    register()
    register()
    config = InlayConfig.from_parent(LLAMA)
    blocks = [{"attention": {"kind": "no_op"}, "ffn": {"kind": "linear"}}, *config.blocks[1:]]
    child = config.with_blocks(blocks)
    child.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is InlayConfig
    assert loaded.to_diff_dict() == child.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["blocks"] == blocks
    assert config.blocks[0]["attention"]["kind"] == "full"


def test_with_blocks_keeps_the_rest() -> None:
    config = InlayConfig.from_parent(LLAMA)
    config._attn_implementation = "eager"
    child = config.with_blocks(config.blocks[:2])
    assert child._attn_implementation == "eager"
    assert child.num_hidden_layers == 2
    assert child.base == config.base
    assert child.base is not config.base


def test_layer_types_of_stock_caches(values: dict[str, Any]) -> None:
    values["blocks"][0]["attention"] = {"kind": "no_op"}
    values["blocks"][1]["attention"] = {"kind": "linear"}
    assert InlayConfig(**values).layer_types == ["moe", "moe", "full_attention"]
    values["blocks"][2]["attention"] = {"kind": "no_op"}
    assert InlayConfig(**values).layer_types == ["full_attention"] * 3


@pytest.mark.parametrize(
    ("slot", "entry", "message"),
    [
        (
            "attention",
            {"kind": "windw"},
            r"layer 1 attention: {'kind': 'windw'} has no kind of attention; there are full",
        ),
        ("attention", None, "layer 1 attention: None has no kind of attention"),
        ("ffn", {"kind": "full", "kv_heads": 2}, "layer 1 ffn: .* has no kind of ffn; there are gated, experts, lin"),
        (
            "attention",
            {"kind": "full", "kv_heads": 3},
            "layer 1 attention: kv_heads is 3; it must divide the 4 query heads",
        ),
        ("attention", {"kind": "full", "kv_heads": 0}, "layer 1 attention: kv_heads is 0; .* at least 1"),
        ("attention", {"kind": "full"}, "layer 1 attention: kind 'full' takes kv_heads, and may have heads; given"),
        (
            "attention",
            {"kind": "full", "kv_heads": 2, "heads": 4},
            "layer 1 attention: heads is 4; it must be fewer than the 4 query heads of the model, or be left out",
        ),
        (
            "attention",
            {"kind": "full", "kv_heads": 2, "heads": 3},
            "layer 1 attention: kv_heads is 2; it must divide the 3 query heads",
        ),
        ("attention", {"kind": "full", "kv_heads": 1, "heads": 0}, "layer 1 attention: heads is 0; .* at least 1"),
        ("attention", {"kind": "linear", "heads": 2}, "layer 1 attention: kind 'linear' takes nothing else"),
        ("attention", {"kind": "no_op", "kv_heads": 1}, "layer 1 attention: kind 'no_op' takes nothing else"),
        ("attention", {"kind": "window", "kv_heads": 2, "window": 0, "sinks": 0}, "layer 1 attention: window is 0"),
        ("attention", {"kind": "window", "kv_heads": 2, "window": 8, "sinks": -1}, "layer 1 attention: sinks is -1"),
        ("attention", {"kind": "window", "kv_heads": 2, "window": 8.0, "sinks": 0}, "layer 1 attention: window is 8.0"),
        ("ffn", {"kind": "gated", "width": 0}, "layer 1 ffn: width is 0; it must be an integer of at least 1"),
        ("ffn", {"kind": "gated", "width": True}, "layer 1 ffn: width is True"),
    ],
)
def test_wrong_entries(slot: str, entry: Any, message: str, values: dict[str, Any]) -> None:
    values["blocks"][1][slot] = entry
    with pytest.raises(ValueError, match=message):
        InlayConfig(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gpt2"}, "family is 'gpt2'; inlay knows llama, mistral, qwen2, qwen3"),
        ({"blocks": []}, "blocks is \\[\\]; it must hold one block a layer"),
        ({"blocks": [{"attention": {"kind": "no_op"}}]}, "layer 0: a block is .*; given"),
        ({"base": {"hidden_size": 32}}, "base.intermediate_size is None"),
        ({"base": None}, "base is None; it must hold the fields"),
    ],
)
def test_wrong_fields(change: dict[str, Any], message: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        InlayConfig(**{**values, **change})


def test_base_of_another_family(values: dict[str, Any]) -> None:
    values["base"]["experts"] = 8
    with pytest.raises(ValueError, match="base has experts, which llama does not take"):
        InlayConfig(**values)


def test_unknown_parent() -> None:
    with pytest.raises(ValueError, match="model_type is 'gpt2'; inlay knows llama, mistral, qwen2, qwen3"):
        InlayConfig.from_parent(GPT2Config())
