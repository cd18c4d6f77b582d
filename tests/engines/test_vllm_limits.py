"""What vLLM cannot run is told in sentences, without vLLM; and the wheel says where vLLM finds the plugin."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.nas.engines.vllm_plugin.limits import CPU_HEAD_SIZES, KINDS, model_problem, problem
from inlay.nas.families.reading import shape_of
from inlay.nas.families.shape import Shape
from inlay.nas.modeling import SUBBLOCKS
from inlay.nas.modeling.experts_inlay import Experts
from inlay.nas.modeling.gla_inlay import GatedLinearAttention

ROOT = Path(inlay.__file__).resolve().parent.parent


@pytest.fixture
def shape() -> Shape:
    config = {"model_type": "llama", "hidden_size": 192, "num_attention_heads": 6, "num_hidden_layers": 2}
    return shape_of({**config, "intermediate_size": 64, "vocab_size": 100}, "float32")


@pytest.mark.parametrize(
    ("slot", "entry"),
    [
        ("attention", {"kind": "full", "kv_heads": 2}),
        ("attention", {"kind": "full", "kv_heads": 2, "heads": 4}),
        ("attention", {"kind": "window", "kv_heads": 2, "window": 16, "sinks": 0}),
        ("attention", {"kind": "linear"}),
        ("attention", {"kind": "no_op"}),
        ("ffn", {"kind": "gated", "width": 33}),
        ("ffn", {"kind": "linear"}),
        ("ffn", {"kind": "no_op"}),
    ],
    ids=str,
)
def test_what_vllm_runs(slot: str, entry: dict[str, Any], shape: Shape) -> None:
    assert problem(entry, slot, shape) is None


def test_windows_with_sinks_are_not_run(shape: Shape) -> None:
    entry = {"kind": "window", "kv_heads": 2, "window": 16, "sinks": 4}
    assert problem(entry, "attention", shape) == (
        "vLLM has windows but keeps no first tokens beside them (window 16, sinks 4); "
        "search with `sinks: 0`, or run the child with Transformers."
    )


def test_kinds_that_others_added_are_not_run(shape: Shape) -> None:
    class Other(type(SUBBLOCKS.of({"kind": "linear"}))):  # type: ignore[misc]
        name = "other"

    SUBBLOCKS.register(Other())
    try:
        assert problem({"kind": "other"}, "ffn", shape) == (
            "vLLM has no ffn of kind `other`; search without that kind, or run the child with Transformers."
        )
    finally:
        SUBBLOCKS.forget("other")


def test_every_kind_of_ours_is_known_or_refused() -> None:
    refused = {GatedLinearAttention.name, Experts.name}  # tests/cli/test_engine_limits.py has the sentence
    assert {*KINDS, *refused} == {*SUBBLOCKS.names("attention"), *SUBBLOCKS.names("ffn")}


def test_head_sizes_on_a_cpu(shape: Shape) -> None:
    small = replace(shape, head_dim=8)
    assert model_problem(small, "cpu") == (
        "vLLM on a CPU has attention for heads of 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512 numbers, "
        "and this model's have 8; run it with vLLM on a GPU, or with Transformers."
    )
    assert model_problem(small, "cuda:0") is None
    assert all(model_problem(replace(shape, head_dim=size), "cpu") is None for size in CPU_HEAD_SIZES)


def test_a_model_that_keeps_no_keys_runs(shape: Shape) -> None:
    block = {"attention": {"kind": "linear"}, "ffn": {"kind": "no_op"}}
    assert model_problem(replace(shape, blocks=(block, block)), "cpu") is None


def test_rotary_scalings(shape: Shape) -> None:
    assert all(model_problem(replace(shape, rotation=name), "cuda") is None for name in ("default", "llama3"))
    assert model_problem(replace(shape, rotation="dynamic"), "cuda") == (
        "vLLM rotates positions otherwise than Transformers where `rope_type` is dynamic, and alike for default, "
        "linear, llama3, yarn; run it with Transformers."
    )


def test_the_wheel_names_a_function_that_is_there() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = declared["project"]["entry-points"]["vllm.general_plugins"]["inlay"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_nothing_heavy_is_imported_to_find_the_plugin_and_to_ask_for_limits() -> None:
    """vLLM imports the module in each of its processes; a search asks for limits where there is no vLLM."""
    modules = "inlay.nas.engines.vllm_plugin, inlay.nas.engines.vllm_plugin.limits"
    heavy = ("torch", "transformers", "ray", "mlflow", "vllm")
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
