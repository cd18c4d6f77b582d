"""The MLflow run of a search: the same one wherever it computes, another one for another search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.job import Job
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.recording.record import SearchRecord
from inlay.nas.workspace import Workspace

Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path, tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> Make:
    """`make(cluster={...})`: a job with these sections."""

    def job(**sections: Any) -> Job:
        values: dict[str, Any] = {
            "parent": str(tiny_parent("llama")),
            "data": {"distill": {"path": str(texts[0]), "sequence_length": 32}, "validate": {"path": str(texts[1])}},
            "space": {"attention": ["no_op"]},
            "budget": {"parameters": "0.9x"},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
        return Job.from_dict(values | sections)

    return job


def run_of(job: Job, place: Workspace) -> str:
    """Starts and ends the record of a search; the id of its run."""
    record = SearchRecord(job, place, Reporter())
    record.start()
    record.end(None)
    identifier = record.tracked.run_id()
    assert identifier is not None
    return identifier


def test_a_search_continues_its_run_wherever_it_computes(make: Make, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "w.search")
    first = run_of(make(), place)
    assert run_of(make(cluster={"max_workers": 2, "cpus_per_worker": 2}), place) == first
    assert run_of(make(cluster={"address": "ray://head:10001"}), place) == first
    assert run_of(make(recover={"workers": 2, "sharding": "full"}), place) == first


@pytest.mark.parametrize("url", [False, True])
def test_another_search_of_the_workspace_has_its_own_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = Workspace(f"memory://{tmp_path.name}/w.search" if url else tmp_path / "w.search")
    first = run_of(make(), place)
    assert run_of(make(budget={"parameters": "0.95x"}), place) != first
    assert run_of(make(seed=1), place) != first
    assert run_of(make(), place) == first
