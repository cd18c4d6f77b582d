"""A cache in blocks: its bytes and what comes out are llama.cpp's, and what it cannot hold is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inlay.distill.sweep import sweep
from inlay.nas.engines.engine import Target
from inlay.nas.engines.fitting import hardware_problems, shape_problems
from inlay.nas.engines.gguf.trained import write_trained
from inlay.nas.engines.llama_cpp import LlamaCppEngine, cache_of, process
from inlay.nas.engines.llama_files import MIB, packed_of
from inlay.nas.engines.registry import storage_of
from inlay.nas.engines.timing import Workload
from inlay.nas.families import open_parent
from inlay.nas.formats.tensors import packed
from inlay.nas.job.sections import Hardware
from inlay.nas.job.space import Space
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.rounded_cache import as_run
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK

ENGINE, TARGET = LlamaCppEngine(), Target("cpu", "float32", "f32", kv_format="q8_0")
SPACE = Space.model_validate({"ffn": ["no_op"]})


@pytest.fixture(scope="module")
def parent(tiny_parent: Callable[..., Path]) -> Any:
    return open_parent(tiny_parent("llama", hidden_size=128, num_attention_heads=2, num_key_value_heads=2))


def test_its_bytes_are_those_that_llama_cpp_allocates(parent: Any) -> None:
    held = {}
    for kv_format in ENGINE.kv_formats:
        workload = Workload(batch_size=2, prefill=300, generate=4, threads=1)
        target = replace(TARGET, kv_format=kv_format)
        timed = ENGINE.rounds({"parent": parent.config}, workload, target, lambda share: None)
        storage, shape = ENGINE.storage("f32", "cpu", kv_format), parent.shape
        held[kv_format] = sum(storage.kv(block["attention"], shape, 2, 304) for block in shape.blocks)
        assert timed.held["parent"].kv_bytes == pytest.approx(held[kv_format], abs=MIB / 100)
    assert held["q8_0"] * 64 == held["f16"] * 34


def test_what_is_judged_is_what_llama_cpp_computes(parent: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_trained(
        path,
        packed_of(parent.config, "f32"),
        parent.config,
        parent.folder,
        lambda name, form: packed(parent.tensor(name), form),
    )
    ids = torch.randint(0, parent.shape.vocab, (1, 96), generator=torch.Generator().manual_seed(0))
    arguments = {"parent": str(parent.folder), "store": str(tmp_path), "dtype": "float32", "device": "cpu"}
    source = worker_source(arguments, Library({}))
    ends, own = source.ends(), [[PARENT_BLOCK] * source.num_layers]
    logits = {}
    for kv_format in ("", "q8_0"):
        (hidden_NSD,) = sweep(as_run(source, kv_format), own, ends.embed(ids), 0, 1)
        logits[kv_format] = ends.norm(hidden_NSD)[0] @ ends.head_VD.T
    with process(None) as engine:
        models = {"file": str(path)}
        engine.ask("open", models=models, tokens=128, sequences=1, threads=1, **cache_of(TARGET))
        engine.ask("logits", model="file", ids=ids[0].tolist(), output=str(tmp_path / "logits.npy"))
    theirs = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    exact, ours = logits[""], logits["q8_0"]
    assert float((ours - exact).abs().max()) > 0
    # The same noise but for the order of the numbers within a head, and queries that llama.cpp rounds too.
    changed, different = (float((theirs - other).square().mean()) for other in (exact, ours))
    assert changed > 0
    assert different < 3 * float((ours - exact).square().mean())
    assert changed < 5 * float((ours - exact).square().mean())


def test_what_it_cannot_hold_is_refused(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama", hidden_size=96, num_attention_heads=4)).shape
    hardware = Hardware.model_validate({"engine": "llama.cpp", "kv_format": "q8_0"})
    assert [str(problem) for problem in shape_problems(hardware, shape, SPACE)] == [
        "hardware.kv_format: q8_0 stores 32 numbers together, and the parent's heads have 24; take f16"
    ]
    assert list(shape_problems(Hardware.model_validate({"engine": "llama.cpp"}), shape, SPACE)) == []
    for name in ("transformers", "vllm"):
        others = Hardware.model_validate({"engine": name, "kv_format": "q8_0"})
        assert [str(problem) for problem in hardware_problems(others)] == [
            f"hardware.kv_format: {name} stores keys and values in one way; search with `hardware.engine: llama.cpp`, "
            "or leave it out"
        ]


def test_a_jobs_storage_has_its_cache(parent: Any) -> None:
    entry = parent.shape.parent_entry(0, "attention")
    sizes = {
        kv_format: storage_of(
            Hardware.model_validate({"engine": "llama.cpp", "kv_format": kv_format}), parent.shape
        ).kv(entry, parent.shape, 1, 256)
        for kv_format in ("auto", "f16", "q8_0")
    }
    assert sizes["auto"] == sizes["f16"] == 2 * 2 * 256 * 64 * 2
    assert sizes["q8_0"] == sizes["f16"] // 64 * 34
