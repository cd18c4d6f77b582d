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
from inlay.nas.engines.registry import kv_formats_of, storage_of
from inlay.nas.engines.timing import Workload
from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.formats.tensors import packed
from inlay.nas.job import Job
from inlay.nas.job.sections import Hardware
from inlay.nas.job.space import Space
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.rounded_cache import as_run
from inlay.nas.pieces.subblock_times import SubblockBench, entry_key
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


def test_each_of_several_is_refused_that_cannot_be(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama", hidden_size=96, num_attention_heads=4)).shape
    both = Hardware.model_validate({"engine": "llama.cpp", "kv_format": ["q8_0", "f16"]})
    assert kv_formats_of(both) == ("f16", "q8_0")
    assert [str(problem) for problem in shape_problems(both, shape, SPACE)] == [
        "hardware.kv_format: q8_0 stores 32 numbers together, and the parent's heads have 24; take f16"
    ]
    windows = Space.model_validate({"attention": [{"window": 8}]})
    whole = open_parent(tiny_parent("llama", hidden_size=128, num_attention_heads=2)).shape
    (refused,) = map(str, shape_problems(both, whole, windows))
    assert refused.startswith("space.attention: attention:window=8")
    assert "llama.cpp has no window attention" in refused
    others = Hardware.model_validate({"engine": "transformers", "kv_format": ["f16", "q8_0"]})
    assert [str(problem) for problem in hardware_problems(others)] == [
        "hardware.kv_format: transformers stores keys and values in one way; search with `hardware.engine: llama.cpp`, "
        "or leave it out"
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("q4_0", "hardware.kv_format: 'q4_0' is no cache; write auto, f16 or q8_0, or a list: [f16, q8_0]"),
        ([], "hardware.kv_format: [] is empty; name one cache or several, such as [f16, q8_0]"),
        (["f16", "bf16"], "hardware.kv_format[1]: 'bf16' is no cache; there are f16, q8_0"),
        (["q8_0", "q8_0"], "hardware.kv_format[1]: 'q8_0' is there twice; leave one out"),
    ],
)
def test_what_is_no_cache_is_refused(given: object, told: str) -> None:
    with pytest.raises(UserError) as refused:
        Job.from_dict({"hardware": {"engine": "llama.cpp", "kv_format": given}})
    assert f"  {told}" in str(refused.value).splitlines()


def test_one_in_a_list_is_that_one() -> None:
    assert Hardware.model_validate({"engine": "llama.cpp", "kv_format": ["q8_0"]}).kv_format == "q8_0"


def test_kept_times_are_of_one_cache(parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path))
    workload = Workload(batch_size=1, prefill=8, generate=2, threads=1)
    key = entry_key("attention", parent.shape.parent_entry(0, "attention"))
    benches = {
        kv_format: SubblockBench(ENGINE, replace(TARGET, kv_format=kv_format), parent.config, workload)
        for kv_format in ENGINE.kv_formats
    }
    benches["f16"].times([key], lambda share: None)
    assert {name: sorted(bench.known([key])) for name, bench in benches.items()} == {
        "f16": [key, "ends"],
        "q8_0": [],
    }


def test_a_model_that_names_its_cache_runs_with_it(parent: Any) -> None:
    workload = Workload(batch_size=1, prefill=300, generate=4, threads=1)
    models = {
        name: parent.config.with_blocks(parent.config.blocks, kv_format=form)
        for name, form in (("told", None), ("own", "q8_0"))
    }
    held = ENGINE.rounds(models, workload, replace(TARGET, kv_format="f16"), lambda share: None).held
    for name, form in (("told", "f16"), ("own", "q8_0")):
        own = sum(
            ENGINE.storage("f32", "cpu", form).kv(b["attention"], parent.shape, 1, 304) for b in models[name].blocks
        )
        assert held[name].kv_bytes == pytest.approx(own, abs=MIB / 100)


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
