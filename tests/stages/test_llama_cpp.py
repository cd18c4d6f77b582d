"""A search whose engine is llama.cpp, from the job to a file that llama.cpp runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from searched import child_meets_its_budget, costs_are_those_of

from inlay.nas.engines.registry import ENGINES
from inlay.nas.tables.origin import origin_of
from inlay.nas.tables.reading import read_arrow

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SearchedAgain = Callable[[Callable[[Path, dict[str, Any]], None]], Path]


@pytest.fixture(scope="module")
def folder(searched_again: SearchedAgain) -> Path:
    """The finished search again, for llama.cpp."""
    return searched_again(for_llama_cpp)


def for_llama_cpp(folder: Path, values: dict[str, Any]) -> None:
    values["space"]["attention"] = [item for item in values["space"]["attention"] if "window" not in item]
    values["hardware"] |= {"engine": "llama.cpp", "format": "f32"}
    values["budget"] = {"runtime": "0.8x", "memory": "0.95x", "memory_peak": "0.99x"}


def test_costs_are_those_of_its_files_and_caches(folder: Path) -> None:
    costs_are_those_of(folder, ENGINES["llama.cpp"].storage("f32", "cpu"))


def test_the_child_meets_its_budget_there(folder: Path) -> None:
    child_meets_its_budget(folder, 0.85)


def test_what_it_holds_is_what_was_promised(folder: Path) -> None:
    evaluation = json.loads((folder / "job.search" / "evaluation.json").read_text())
    for name in ("parent", "child", "uniform", "depth"):
        row = evaluation[name]
        assert row["held_weights_bytes"] == row["weights_bytes"]
        assert row["held_kv_bytes"] == pytest.approx(row["kv_bytes"], abs=0.005 * 2**20)  # its log has two digits
        assert row["file_bytes"] == row["predicted_file_bytes"] > row["weights_bytes"]
        assert row["memory_peak_bytes"] > row["weights_bytes"] + row["held_kv_bytes"]
        assert row["predicted_memory_peak_bytes"] == pytest.approx(row["memory_peak_bytes"], rel=0.1)
    peaks = [evaluation[name]["memory_peak_bytes"] for name in (evaluation["chosen"], "parent")]
    assert peaks[0] <= 0.995 * peaks[1]
    assert "peak memory" in (folder / "stdout").read_text()


def test_its_cost_table_says_what_it_is_of(folder: Path) -> None:
    origin = origin_of(read_arrow(folder / "job.search" / "tables" / "costs.parquet"))
    assert origin is not None
    assert (origin.engine, origin.format, list(origin.scenarios)) == ("llama.cpp", "f32", ["chat"])


def test_a_file_is_the_child(folder: Path, inlay_here: Run) -> None:
    done = inlay_here("export", "job.search", "--format", "gguf", "-o", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "out").glob("*-f32.gguf")
    card = (folder / "out" / "README.md").read_text()
    told = float(card.split("llama.cpp's logits of this file are ")[1].split()[0])
    assert abs(told) < 1e-6
    assert file.stat().st_size > 1000
    again = inlay_here("export", "job.search", "--format", "gguf", "-o", "out", cwd=folder)
    assert again.returncode == 2
    assert again.stderr == "inlay: --output: out exists and is not an empty folder; name another\n"


def test_nothing_is_left_of_a_file_that_cannot_be_checked(folder: Path, inlay_here: Run) -> None:
    """The interpreter that the job names is gone."""
    run = folder / "job.search" / "run.json"
    kept = run.read_text()
    told = json.loads(kept)
    told["job"]["hardware"]["python"] = "/nowhere/python"
    run.write_text(json.dumps(told))
    try:
        done = inlay_here("export", "job.search", "--format", "gguf", "-o", "gone", cwd=folder)
    finally:
        run.write_text(kept)
    assert done.returncode == 2
    assert done.stderr.startswith("inlay: hardware.python: /nowhere/python cannot be started")
    assert not [path for path in folder.iterdir() if "gone" in path.name]


def test_an_engine_that_is_not_there_is_told_before_anything_is_written(folder: Path, inlay_here: Run) -> None:
    values = yaml.safe_load((folder / "job.yaml").read_text())
    values["hardware"]["python"] = str(Path(sys.base_prefix) / "bin" / "python3")
    (folder / "other.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "other.yaml", cwd=folder)
    assert done.returncode == 2
    assert "has no binding of llama.cpp" in done.stderr
    assert not (folder / "other.search").exists()
