"""A job whose parent is a GGUF file: checked and planned from the file's header, and refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.test_startup import heavy_after
from gguf_files import write_gguf

WriteJob = Callable[..., Path]


@pytest.fixture
def job(write_job: WriteJob, tiny_parent: Any, tmp_path: Path) -> Path:
    """A right job, whose parent lies beside it as `parent.gguf`."""
    write_gguf(tiny_parent("llama"), tmp_path / "parent.gguf")
    return write_job({"parent": "parent.gguf"})


def test_validate_loads_nothing_heavy_and_writes_nothing(job: Path) -> None:
    held = sorted(job.parent.iterdir())
    assert heavy_after("validate", job) == []
    assert sorted(job.parent.iterdir()) == held


def test_what_does_not_suit_the_parent_is_told(refusal: Any, job: Path) -> None:
    values = yaml.safe_load(job.read_text())
    values["space"]["ffn"] = [{"width": 480}]
    values["data"]["distill"]["sequence_length"] = 65
    job.write_text(yaml.safe_dump(values))
    said = refusal("validate", job)
    assert "space.ffn[0].width: 480 is above the parent's width of 48" in said
    assert "data.distill.sequence_length: 65 is longer than the parent's context; it must be at most 64" in said


def test_texts_are_counted_by_its_tokenizer(refusal: Any, job: Path) -> None:
    (job.parent / "train.txt").write_text("short")
    assert "data.distill.path: 'train.txt': the text has 6 tokens" in refusal("validate", job)


def test_the_plan_is_that_of_the_folder(answer: Any, job: Path, write_job: WriteJob, tiny_parent: Any) -> None:
    plan = answer("plan", job)
    assert plan["parent"].pop("name") == "parent.gguf"
    beside = answer("plan", write_job({"parent": str(tiny_parent("llama"))}))
    del beside["parent"]["name"]
    assert plan["parent"] == beside["parent"]
    assert plan["space"] == beside["space"]


@pytest.mark.parametrize("verb", ["validate", "plan", "run"])
def test_a_damaged_file_is_refused_by_every_verb(verb: str, refusal: Any, job: Path) -> None:
    path = job.parent / "parent.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"parent: the file `{path}` is damaged: it is truncated: its tensor `" in refusal(verb, job).replace(
        "\n", " "
    )
    assert not (job.parent / "job.search").exists()


def test_init_fits_the_job_to_it(job: Path, answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from inlay.nas.cli import main

    assert main(["init", "--parent", str(job.parent / "parent.gguf"), "-"]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert written["data"]["distill"]["sequence_length"] == 64
    assert json.dumps(written["space"]["attention"]).startswith('[{"kv_heads": 1}, {"window": ')
