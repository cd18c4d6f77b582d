"""What holds of a finished search of `tests/stages`, whatever engine its job names."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from inlay.nas.families import open_parent
from inlay.nas.tables.costs import CostTable
from inlay.nas.variants.storage import Storage
from inlay.nas.workspace import Workspace


def costs_are_those_of(folder: Path, storage: Storage) -> None:
    """The whole parent costs the bytes that the engine's storage counts, of two sequences of 48 tokens."""
    shape = open_parent(yaml.safe_load((folder / "job.yaml").read_text())["parent"]).shape
    costs = CostTable(Workspace(folder / "job.search").read_table("costs"))
    whole = costs.total("chat", [("attention:parent", "ffn:parent")] * shape.num_layers)
    assert whole["weights_bytes"] == storage.model(shape, shape.blocks)
    assert whole["kv_bytes"] == sum(storage.kv(block["attention"], shape, 2, 48) for block in shape.blocks)
    assert whole["runtime_ns"] > costs.ends("chat")["runtime_ns"] > 0


def child_meets_its_budget(folder: Path, most: float) -> None:
    """What was chosen takes at most so much of the parent's runtime, and was predicted."""
    evaluation = json.loads((folder / "job.search" / "evaluation.json").read_text())
    chosen = evaluation[evaluation["chosen"]]
    assert chosen["over_budget"] == {}
    assert chosen["runtime_ratio"] < most
    for term in ("prefill", "decode", "runtime"):
        assert chosen[f"predicted_{term}_ratio"] > 0
    assert "predicted" in (folder / "stdout").read_text()
