"""A search whose engine is llama.cpp, from the job to a file that llama.cpp runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inlay.nas.engines.registry import ENGINES
from inlay.nas.families import open_parent
from inlay.nas.tables.costs import CostTable
from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory, inlay_here: Run) -> Path:
    """The finished search again, for llama.cpp: what was trained is used again."""
    folder = tmp_path_factory.mktemp("llama") / "copy"
    shutil.copytree(finished, folder)
    values: dict[str, Any] = yaml.safe_load((folder / "job.yaml").read_text())
    values["space"]["attention"] = [item for item in values["space"]["attention"] if "window" not in item]
    values["hardware"] |= {"engine": "llama.cpp", "format": "f32"}
    values["budget"] = {"runtime": "0.8x", "memory": "0.95x"}
    values["solve"] = {"pool": 2, "corrections": 0}
    values["recover"] = {"tokens": "4k", "probes": 0}
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_costs_are_those_of_its_files_and_caches(folder: Path) -> None:
    place = Workspace(folder / "job.search")
    values = yaml.safe_load((folder / "job.yaml").read_text())
    shape = open_parent(values["parent"]).shape
    costs, storage = CostTable(place.read_table("costs")), ENGINES["llama.cpp"].storage("f32", "cpu")
    whole = costs.total("chat", [("attention:parent", "ffn:parent")] * shape.num_layers)
    assert whole["weights_bytes"] == storage.model(shape, shape.blocks)
    assert whole["kv_bytes"] == sum(storage.kv(block["attention"], shape, 2, 48) for block in shape.blocks)
    assert whole["runtime_ns"] > costs.ends("chat")["runtime_ns"] > 0


def test_the_child_meets_its_budget_there(folder: Path) -> None:
    evaluation = json.loads((folder / "job.search" / "evaluation.json").read_text())
    chosen = evaluation[evaluation["chosen"]]
    assert chosen["over_budget"] == {}
    assert chosen["runtime_ratio"] < 0.85
    for term in ("prefill", "decode", "runtime"):
        assert chosen[f"predicted_{term}_ratio"] > 0
    assert "predicted" in (folder / "stdout").read_text()


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
