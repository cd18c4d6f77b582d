"""A search and `inlay measure` on one machine: a given table is not measured, and no time is taken twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.cli import main
from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.measure_alone import measure_alone
from inlay.nas.tables.origin import write_costs

MakeSearch = Callable[[Job, Path], SmallSearch]


@pytest.fixture
def values(
    trained_parent: Path, texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A job on a machine that keeps nothing yet."""
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path / "kept"))
    return {
        "parent": str(trained_parent),
        "data": {"distill": {"path": str(texts[0])}, "validate": {"path": str(texts[1])}},
        "space": {"attention": [{"kv_heads": 2}, "no_op"], "ffn": [{"width": 0.5}, "linear"]},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.8x"},
    }


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_a_search_takes_the_table_and_measures_nothing(
    values: dict[str, Any], tmp_path: Path, make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measure_alone(Job.from_dict(values), Reporter())
    write_costs(tmp_path / "costs.parquet", measured.rows, measured.origin)
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path / "elsewhere"))
    values["hardware"]["costs"] = str(tmp_path / "costs.parquet")
    search = make_search(Job.from_dict(values), tmp_path / "given.search")
    assert cost_rows(search) == measured.rows
    assert search.workspace.store.list("records/") == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_search_takes_what_was_measured_alone_and_the_other_way_round(
    values: dict[str, Any], tmp_path: Path, make_search: MakeSearch
) -> None:
    job = Job.from_dict(values)
    first = measure_alone(job, Reporter())
    assert first.kept == 0
    held = files(tmp_path / "kept")
    assert len(held) == first.timed + 1
    for name in ("one.search", "another.search"):
        assert cost_rows(make_search(job, tmp_path / name)) == first.rows
    assert files(tmp_path / "kept") == held
    assert main(["measure", "--clear"]) == 0
    rows = cost_rows(make_search(job, tmp_path / "third.search"))
    assert rows != first.rows
    second = measure_alone(job, Reporter())
    assert (second.rows, second.timed) == (rows, 0)


def test_what_is_measured_later_joins_at_the_pace_of_before(values: dict[str, Any], tmp_path: Path) -> None:
    """A machine that is said to have been ten times as slow is still so slow for what is new."""
    first = measure_alone(Job.from_dict(values), Reporter())
    for path in (tmp_path / "kept").rglob("*.json"):
        held = json.loads(path.read_text())
        if "pace" in held:
            held["pace"] = [10 * part for part in held["pace"]]
            held["times"] = {part: 10 * value for part, value in held["times"].items()}
            path.write_text(json.dumps(held))
    values["space"]["ffn"] = [{"width": 0.25}]
    later = measure_alone(Job.from_dict(values), Reporter())
    assert later.timed == 1

    def decode(rows: Any, variant: str) -> int:
        return next(int(row["decode_ns"]) for row in rows if row["variant"].startswith(variant))

    own = decode(first.rows, "ffn:parent")
    assert decode(later.rows, "ffn:parent") == 10 * own
    assert decode(later.rows, "ffn:width") > 2 * own
