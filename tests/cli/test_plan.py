"""What `inlay plan` says of a budget and of the time it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Inlay = Callable[..., Any]
WriteJob = Callable[..., Path]


def plan_of(inlay: Inlay, job: Path) -> Any:
    done = inlay("plan", job, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_least_of_every_exact_quantity(inlay: Inlay, write_job: WriteJob) -> None:
    changes = {
        "space.attention": [{"kv_heads": 1}],
        "space.ffn": ["linear"],
        "budget": {"kv": "0.4x", "memory": "0.99x", "weights": "0.1x", "runtime": "0.1x"},
    }
    plan = plan_of(inlay, write_job(changes))
    (least,) = [text for name, text in plan["facts"] if name == "least"]
    assert "kv 0.500x" in least
    assert least.endswith("least times are known once they were measured")
    # Width 32, 4 query and 2 key/value heads, ffn 48, vocabulary 288, tied; 3 layers.
    ends, own = 288 * 32 + 32, 3 * (2 * 32 + 3072 + 4608)
    reached = ends + 3 * (2 * 32 + 2560 + 1024)
    assert f"parameters {reached / (ends + own):.3f}x, weights {reached / (ends + own):.3f}x" in least
    assert [warning.split(":")[0] for warning in plan["warnings"] if "cannot be met" in warning] == [
        "budget.kv",
        "budget.weights",
    ]
    assert any("budget.kv: 0.4x cannot be met in default; the least that the space reaches is 0.500x" in w
               for w in plan["warnings"])  # fmt: skip


@pytest.mark.parametrize(("workers", "ranks", "at_once"), [(30, 2, 6), (3, 2, 2)])
def test_recover_has_as_many_models_at_once_as_there_are(
    inlay: Inlay, write_job: WriteJob, workers: int, ranks: int, at_once: int
) -> None:
    job = write_job({"cluster.max_workers": workers, "recover.workers": ranks})
    seconds = {stage["name"]: stage.get("seconds") for stage in plan_of(inlay, job)["stages"]}
    one = write_job({"cluster.max_workers": 1})
    alone = {stage["name"]: stage.get("seconds") for stage in plan_of(inlay, one)["stages"]}
    # Both are counted at the rate of the moment; `assemble` is shared by all workers.
    gain = (alone["recover"] / alone["assemble"]) / (seconds["recover"] / seconds["assemble"])
    assert gain == pytest.approx(at_once / workers)
