"""What `inlay plan` says of a budget and of the time it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.stages.estimate import START_SECONDS, stage_seconds

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
    # Both are counted at the rate of the moment; `score` is shared by as many workers as there are layers, three.
    gain = (alone["recover"] / alone["score"]) / (seconds["recover"] / seconds["score"])
    assert gain == pytest.approx(at_once / 3)


def test_every_stage_has_its_time_and_they_are_added_up(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job({"data.validate.sequence_length": 32})
    stages = plan_of(inlay, job)["stages"]
    timed = {stage["name"]: stage["seconds"] for stage in stages if stage["name"] != "advance"}
    assert list(timed) == ["measure", "distill", "score", "assemble", "recover", "evaluate", "export"]
    assert all(seconds > 0 for seconds in timed.values())
    (score,) = [stage["what"] for stage in stages if stage["name"] == "score"]
    assert score.endswith("blocks on 192 tokens (6 of 32)")
    shown = inlay("plan", job).stdout
    (total,) = [line for line in shown.splitlines() if line.startswith("total")]
    assert "~" in total


def test_what_workers_hold_is_said_before(inlay: Inlay, write_job: WriteJob) -> None:
    def plan(workers: int, cpus: int = 1) -> dict[str, Any]:
        job = write_job({"cluster": {"max_workers": workers, "cpus_per_worker": cpus}})
        return {stage["name"]: stage for stage in plan_of(inlay, job)["stages"]}

    stages = plan(1, 3)
    for name in ("distill", "score", "recover"):
        assert stages[name]["cpu_hours"] == pytest.approx(3 * stages[name]["seconds"] / 3600)
    assert stages["measure"]["cpu_hours"] * 3600 < 3 * stages["measure"]["seconds"], "what is started holds nothing"
    assert (stages["export"]["cpu_hours"], stages["advance"]["cpu_hours"]) == (0, None)
    assert {stage["gpu_hours"] for stage in stages.values()} == {0, None}
    more = plan(3)  # as many as there are layers and models: all at once, for a third of the time
    for name in ("distill", "recover"):
        assert more[name]["cpu_hours"] == pytest.approx(3 * more[name]["seconds"] / 3600)
    shown = inlay("plan", write_job({"cluster.max_workers": 1})).stdout
    assert "CPU hours" in shown
    assert len(re.findall("~", next(line for line in shown.splitlines() if line.startswith("total")))) == 2


def test_more_to_measure_takes_longer_and_a_given_table_nothing(
    tiny_parent: Callable[..., Path], write_job: WriteJob
) -> None:
    parent = open_parent(tiny_parent("llama"))

    def measuring(changes: dict[str, Any]) -> float:
        return stage_seconds(Job.load(write_job(changes)), parent)["measure"] - START_SECONDS

    few = {"hardware.scenarios": [{"prefill": 8, "generate": 4}], "space.attention": ["no_op"], "space.ffn": ["no_op"]}
    many = {"hardware.scenarios": [{"prefill": 8, "generate": 40}]}
    assert measuring(many) > 2 * measuring(few) > 0
    assert measuring({"hardware.costs": "costs.csv"}) == 0


def test_text_that_the_parent_writes_is_a_stage_of_its_own(
    inlay: Inlay, write_job: WriteJob, tiny_parent: Callable[..., Path]
) -> None:
    def sampled(tokens: int) -> Path:
        texts = {"distill": {"sample": tokens, "sequence_length": 32}, "validate": {"sample": 320, "tokens": 256}}
        return write_job({"data": texts, "cluster.max_workers": 1})

    first, *others = plan_of(inlay, sampled(40_000))["stages"]
    assert (first["name"], first["pieces"]) == ("sample", 4)
    assert first["what"] == (
        "the parent writes 40,000 tokens (1,250 of 32) to distill and 320 tokens (10 of 32) to validate"
    )
    assert "sample" not in [stage["name"] for stage in others]
    parent = open_parent(tiny_parent("llama"))
    few, many = (stage_seconds(Job.load(sampled(tokens)), parent) for tokens in (40_000, 4_000_000))
    assert few["sample"] > START_SECONDS > few["measure"], "workers start once, to write"
    assert many["sample"] - START_SECONDS > 20 * (few["sample"] - START_SECONDS)


def test_a_limit_above_the_parents_own_value_is_told(inlay: Inlay, write_job: WriteJob) -> None:
    told = "budget.memory: 20MiB limits nothing in default: the parent itself takes "
    job = write_job({"budget": {"memory": "20MiB", "parameters": "0.9x"}})
    warnings = plan_of(inlay, job)["warnings"]
    assert [warning for warning in warnings if warning.startswith(told)]
    done = inlay("validate", job)
    assert (done.returncode, done.stdout) == (0, f"{job} is right\n")
    assert done.stderr.startswith(f"! {told}")
    assert done.stderr.endswith("; lower it, or write a ratio such as 0.6x\n")


def test_guided_distillation_is_planned_with_fewer_tokens(inlay: Inlay, write_job: WriteJob) -> None:
    distill = {"tokens": "100k", "batch_size": 2}
    found = {}
    for guided in (False, True):
        plan = plan_of(inlay, write_job({"distill": {**distill, "guided": guided}}))
        found[guided] = next(stage["what"] for stage in plan["stages"] if stage["name"] == "distill")
    trained = int(found[False].split()[0])
    assert found[False] == f"{trained} variants, 100,000 tokens each"
    assert found[True] == (
        f"{trained} variants, 100,000 tokens each at most; about {trained * 35_000:,} of {trained * 100_000:,} "
        "variant-tokens, guided"
    )
