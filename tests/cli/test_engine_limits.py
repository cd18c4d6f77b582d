"""What an engine cannot tell or run is refused when the job is checked, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.engines.llama_cpp import LlamaCppEngine
from inlay.nas.families import open_parent

Refusal = Callable[..., str]
WriteJob = Callable[..., Path]
LLAMA = {"hardware.engine": "llama.cpp", "hardware.format": "f16", "space": {"ffn": [{"width": 32}, "no_op"]}}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def test_a_peak_where_the_engine_does_not_tell_its_buffers(refusal: Refusal, answer: Any, write_job: WriteJob) -> None:
    assert answer("validate", write_job({"budget": {"memory": "0.6x"}}))["valid"]
    told = refusal("validate", write_job({"budget": {"memory_peak": "0.6x"}}))
    assert (
        "budget.memory_peak: transformers on cpu does not tell its compute buffers; limit `memory`, which is " in told
    )


def test_a_peak_where_it_does(answer: Any, write_job: WriteJob, tiny_parent: Any) -> None:
    least = LlamaCppEngine().storage("f16", "cpu").ends(open_parent(tiny_parent("llama")).shape)
    plan = answer("plan", write_job({**LLAMA, "budget": {"memory_peak": "40MiB", "default": {"memory_peak": "0.9x"}}}))
    facts = [text for name, text in plan["facts"] if name == "memory_peak"]
    assert len(facts) == 1
    assert facts[0].startswith(
        "in default: memory and the buffers that llama.cpp computes in, known once it was measured"
    )
    assert not any("memory_peak" in warning for warning in plan["warnings"])
    tight = answer("plan", write_job({**LLAMA, "budget": {"memory_peak": f"{least}B"}}))
    (warning,) = [warning for warning in tight["warnings"] if "memory_peak" in warning]
    assert "cannot be met in default; weights and cache alone take" in warning


def test_a_peak_under_a_table_without_buffers(
    refusal: Refusal, answer: Any, write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path / "kept"))
    space = {"space": {"ffn": [{"width": 32}]}}
    answer("measure", write_job(space), "--output", tmp_path / "costs.csv")
    given = {**space, "hardware.costs": "costs.csv"}
    told = refusal("validate", write_job({**given, "budget": {"memory_peak": "0.6x"}}))
    assert "budget.memory_peak: the cost table does not tell the engine's compute buffers, so no peak is known" in told
    assert answer("validate", write_job(given))["valid"]


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        (
            "llama.cpp",
            "llama.cpp has no gla attention; it runs full",
        ),
        ("vllm", "vLLM has no attention of kind `gla`; search without that kind, or run the child with Transformers"),
    ],
)
def test_a_kind_that_an_engine_lacks(
    engine: str, sentence: str, refusal: Refusal, answer: Any, write_job: WriteJob, tiny_parent: Any
) -> None:
    """Before anything is trained."""
    job = {"space": {"attention": ["gla", "no_op"]}}
    parent = tiny_parent("llama", head_dim=32)
    assert answer("validate", write_job(job, parent=parent))["valid"]
    told = refusal("validate", write_job({**job, "hardware.engine": engine}, parent=parent))
    assert sentence in " ".join(told.split())


@pytest.mark.parametrize(("engine", "name"), [("llama.cpp", "llama.cpp"), ("vllm", "vLLM")])
def test_a_parent_with_experts(
    engine: str, name: str, refusal: Refusal, answer: Any, write_job: WriteJob, tiny_parent: Any
) -> None:
    """Whatever the job would make of them."""
    job = {"space": {"ffn": [{"experts": 2}, {"active": 1, "expert_width": 16}]}}
    parent = tiny_parent("mixtral")
    assert answer("validate", write_job(job, parent=parent))["valid"]
    told = refusal("validate", write_job({**job, "hardware.engine": engine}, parent=parent))
    assert (
        f"hardware.engine: {name} does not run the family mixtral here, only llama, mistral, qwen2, qwen3; search with "
        "`hardware.engine: transformers`"
    ) in " ".join(told.split())


def test_a_rotation_that_llama_cpp_lacks(
    refusal: Refusal, answer: Any, write_job: WriteJob, tiny_parent: Callable[..., Path]
) -> None:
    parent = tiny_parent("llama", rope_parameters=DYNAMIC)
    assert answer("validate", write_job({"space": LLAMA["space"]}, parent=parent))["valid"]
    told = refusal("validate", write_job(LLAMA, parent=parent))
    assert (
        "hardware.engine: llama.cpp does not have the parent's rotation of positions, dynamic, only default, linear, "
        "llama3, yarn; search with `hardware.engine: transformers`"
    ) in " ".join(told.split())


def test_a_table_of_a_parent_that_is_stored_otherwise(
    refusal: Refusal,
    answer: Any,
    write_job: WriteJob,
    tiny_parent: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path / "kept"))
    space, other = {"space": {"ffn": [{"width": 32}]}}, tiny_parent("llama", dtype="bfloat16")
    answer("measure", write_job(space), "--output", tmp_path / "costs.csv")
    job = write_job({**space, "hardware.costs": "costs.csv"}, parent=other)
    assert "bytes of weights, and as this parent is stored it has" in refusal("validate", job)
