"""A search whose parent is a GGUF file: unpacked on scratch once, and gone where nothing may be left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf_files import write_gguf
from stages.test_child_as_parent import values
from transformers import AutoModelForCausalLM

from inlay.nas.families import open_parent
from inlay.nas.stages.solutions import job_of
from inlay.nas.workspace import Workspace


@pytest.fixture
def folder(tiny_parent: Callable[..., Path], texts: tuple[Path, Path], tmp_path: Path) -> Path:
    """With job.yaml, whose parent is the file beside it."""
    write_gguf(tiny_parent("llama"), tmp_path / "parent.gguf")
    small = {"attention": ["no_op"], "ffn": ["no_op"]}
    job = values(
        Path("parent.gguf"), texts, space=small, solve={"pool": 2}, tracking={"uri": f"sqlite:///{tmp_path}/m.db"}
    )
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    return tmp_path


@pytest.mark.slow
def test_a_search_runs_and_goes_on(folder: Path, inlay_here: Any) -> None:
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (unpacked,) = (folder / "job.search" / "scratch" / "parents").iterdir()
    times = {file.name: file.stat().st_mtime_ns for file in unpacked.iterdir()}
    assert AutoModelForCausalLM.from_pretrained(folder / "job.search" / "child").config.model_type == "inlay"
    again = inlay_here("run", "job.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert {file.name: file.stat().st_mtime_ns for file in unpacked.iterdir()} == times
    # After `inlay clean` it is unpacked again for whoever needs it, and is the same parent.
    place = Workspace(folder / "job.search")
    cleaned = inlay_here("clean", "job.search", "--yes", cwd=folder)
    assert "unpacked GGUF parents" in cleaned.stdout
    assert not unpacked.exists()
    parent = job_of(place)[1]
    assert parent.folder == unpacked
    assert parent.digest == place.read_json("workspace.json")["parent_digest"] == open_parent(unpacked).digest


def test_nothing_is_left_in_a_workspace_of_another_parent(
    folder: Path, tiny_parent: Callable[..., Path], inlay_here: Any
) -> None:
    Workspace(folder / "job.search").claim(open_parent(tiny_parent("qwen3")).digest, "another")
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 2
    assert "belongs to the parent another" in done.stderr.replace("\n", " ")
    assert not list((folder / "job.search" / "scratch" / "parents").iterdir())


def test_nothing_is_left_in_a_folder_of_something_else(folder: Path, inlay_here: Any) -> None:
    (folder / "job.search").mkdir()
    (folder / "job.search" / "mine.txt").write_text("")
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 2
    assert "holds mine.txt and is not a workspace" in done.stderr.replace("\n", " ")
    assert [each.name for each in (folder / "job.search").iterdir()] == ["mine.txt"]
