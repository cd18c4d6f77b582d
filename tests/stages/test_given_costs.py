"""A search with a given cost table is judged by that table: its device is not here to be measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.tables.costs import CostTable
from inlay.nas.workspace import Workspace

SearchedAgain = Callable[[Callable[[Path, dict[str, Any]], None]], Path]


@pytest.fixture(scope="module")
def folder(searched_again: SearchedAgain) -> Path:
    """The finished search again on a device where fewer key/value heads are all that saves time, as nowhere here."""
    return searched_again(give_costs)


def give_costs(folder: Path, values: dict[str, Any]) -> None:
    rows = Workspace(folder / "job.search").read_table("costs")
    for row in rows:
        prefill, decode = (100, 1) if row["variant"] in ("attention:kv_heads=2", "ends") else (100_000, 1_000)
        row |= {"prefill_ns": prefill, "decode_ns": decode, "runtime_ns": prefill + 16 * decode}
    place = Workspace(folder / "given.search")
    place.write_table("costs", rows)
    (folder / "given.search" / "tables" / "costs.parquet").rename(folder / "costs.parquet")
    shutil.rmtree(folder / "given.search")
    values["hardware"]["costs"] = "costs.parquet"
    values["budget"] = {"runtime": "0.75x"}


@pytest.mark.slow
def test_the_kept_child_is_the_tables(folder: Path) -> None:
    evaluation = json.loads((folder / "job.search" / "evaluation.json").read_text())
    place = Workspace(folder / "job.search")
    costs = CostTable(place.read_table("costs"))
    solution = place.read_json("solution.json")
    parent = costs.total("chat", [("attention:parent", "ffn:parent")] * len(solution["architecture"]))
    child = costs.total("chat", solution["architecture"])
    assert solution["totals"]["chat"] == child
    assert sum(attention == "attention:kv_heads=2" for attention, _ in solution["architecture"]) > 0
    assert evaluation["child"]["over_budget"] == {}
    assert evaluation["child"]["runtime_seconds"] == pytest.approx(child["runtime_ns"] / 1e9)
    assert evaluation["parent"]["runtime_seconds"] == parent["runtime_ns"] / 1e9
    assert evaluation["child"]["runtime_ratio"] == child["runtime_ns"] / parent["runtime_ns"] <= 0.75


@pytest.mark.slow
def test_another_budget_uses_again_what_was_trained(finished: Path, folder: Path) -> None:
    trained, kept = (
        {path.name: path.stat().st_mtime_ns for path in (place / "job.search" / "records" / "distill").iterdir()}
        for place in (finished, folder)
    )
    assert trained == kept


@pytest.mark.slow
def test_nothing_calls_itself_measured(folder: Path) -> None:
    place = Workspace(folder / "job.search")
    evaluation = json.loads((folder / "job.search" / "evaluation.json").read_text())
    assert {evaluation[name]["times"] for name in ("parent", "child", "uniform", "depth")} == {"given"}
    assert place.read_json("solution.json")["measured"] == {}
    assert all(row["measured_ratio"] is None for row in place.read_table("pool"))
    printed = (folder / "stdout").read_text()
    assert "times are those of the given cost table (hardware.costs), not measured here" in printed


def test_measured_times_say_so(finished: Path) -> None:
    evaluation = json.loads((finished / "job.search" / "evaluation.json").read_text())
    assert {evaluation[name]["times"] for name in ("parent", "child", "uniform", "depth")} == {"measured"}
