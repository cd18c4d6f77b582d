"""What `inlay plan` says of a budget and of the time it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.families import Described, open_parent
from inlay.nas.job import Job
from inlay.nas.stages.estimate import START_SECONDS, expected_stages
from inlay.nas.stages.machines import ThisCpu

Inlay = Callable[..., Any]
WriteJob = Callable[..., Path]


def plan_of(inlay: Inlay, job: Path) -> Any:
    done = inlay("plan", job, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def stage_seconds(job: Path, parent: Described) -> dict[str, float]:
    return {name: stage.seconds for name, stage in expected_stages(Job.load(job), parent, ThisCpu(parent)).items()}


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


WHOLE_MODELS = ("assemble", "recover")


@pytest.mark.parametrize(("workers", "ranks", "at_once"), [(30, 2, 6), (3, 2, 2)])
def test_recover_has_as_many_models_at_once_as_there_are(
    inlay: Inlay, write_job: WriteJob, workers: int, ranks: int, at_once: int
) -> None:
    job = write_job({"cluster.max_workers": workers, "recover.workers": ranks})
    seconds = {stage["name"]: stage.get("seconds") for stage in plan_of(inlay, job)["stages"]}
    # One after the other, on two ranks each.
    one = write_job({"cluster.max_workers": 2, "recover.workers": 2})
    alone = {stage["name"]: stage.get("seconds") for stage in plan_of(inlay, one)["stages"]}
    # Both are counted at the rate of the moment; `score` is shared by two workers, or by as many as there are layers.
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
    total, work = [line for line in shown.splitlines() if line.startswith("total")]
    assert "~" in total
    assert re.fullmatch(r"total +[\d.]+ [MGT] +[\d.]+ MiB *", work)


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
        return stage_seconds(write_job(changes), parent)["measure"] - START_SECONDS

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
    few, many = (stage_seconds(sampled(tokens), parent) for tokens in (40_000, 4_000_000))
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


SHAPES = {
    "Qwen3-0.6B": {"model_type": "qwen3", "layers": 28, "width": 1024, "ffn": 3072, "heads": 16, "vocab": 151936},
    "Llama-3.1-8B": {"model_type": "llama", "layers": 32, "width": 4096, "ffn": 14336, "heads": 32, "vocab": 128256},
}


@pytest.mark.parametrize(("name", "parameters"), [("Qwen3-0.6B", 596e6), ("Llama-3.1-8B", 8.03e9)])
def test_config_json_and_a_kind_of_gpu_are_enough(
    inlay: Inlay, write_job: WriteJob, tmp_path: Path, name: str, parameters: float
) -> None:
    shape = SHAPES[name]
    config = {
        "model_type": shape["model_type"],
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["width"],
        "intermediate_size": shape["ffn"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": shape["vocab"],
        "tie_word_embeddings": shape["model_type"] == "qwen3",
        "max_position_embeddings": 40960,
        "dtype": "bfloat16",
    }
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))

    def plan(gpu: str | None, workers: int) -> Any:
        hardware = {"device": "cuda", "scenarios": [{"prefill": 8, "generate": 4}], **({"gpu": gpu} if gpu else {})}
        return plan_of(inlay, write_job({"hardware": hardware, "cluster.max_workers": workers}, parent=folder))

    one, eight = plan("H100", 1), plan("H100", 8)
    assert one["parent"]["parameters"] == pytest.approx(parameters, rel=0.01)
    weights = next(text for fact, text in one["facts"] if fact == "weights")
    assert weights == f"not in {folder}: its config.json says all that is told here; `run` needs them"
    for stage, other in zip(one["stages"], eight["stages"], strict=True):
        if stage["name"] not in WHOLE_MODELS:
            assert stage["operations"] == other["operations"], "the work is the job's, whatever the cluster"
        if stage["name"] in ("distill", "score"):
            assert stage["seconds"] > other["seconds"], "more is read, or computed, at once"
            assert stage["gpu_hours"] == pytest.approx(stage["seconds"] / 3600)
            assert stage["limit"] in ("starting", "reading")  # a few tokens of text
    trained = [sum(e["operations"] for e in each["stages"] if e["name"] in WHOLE_MODELS) for each in (one, eight)]
    assert trained[0] < trained[1], "one worker runs the parent once for all models that it trains"
    assert all(stage["seconds"] is None for stage in plan(None, 1)["stages"]), "nothing is known of any GPU"


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_recovery_that_fits_no_worker_is_refused_before_anything_is_run(
    verb: str, inlay: Inlay, write_job: WriteJob, tiny_parent: Callable[..., Path]
) -> None:
    parent = tiny_parent("llama", num_hidden_layers=4, hidden_size=512, intermediate_size=1536)
    job = write_job({"cluster.memory_per_worker": "64MiB", "space.attention": [], "space.ffn": ["linear"]}, parent)
    done = inlay(verb, job)
    assert done.returncode == 2
    assert re.search(
        r"recover: the least child of the space takes [\d.]+ MiB on each rank that trains it \(parent .+\), and "
        r"cluster.memory_per_worker is 64 MiB; recover: \{workers: \d+, sharding: full\} would fit$",
        done.stderr.strip(),
    )
    assert not job.with_suffix(".search").exists()


def test_the_plan_says_what_a_rank_holds(inlay: Inlay, write_job: WriteJob) -> None:
    (told,) = [text for name, text in plan_of(inlay, write_job())["facts"] if name == "recover"]
    assert re.match(
        r"a rank holds [\d.]+ [KM]iB for a child as large as the parent \(parent .+, activations .+\)", told
    )


def test_baselines_that_workers_have_time_for_are_trained_beside_the_probes(inlay: Inlay, write_job: WriteJob) -> None:
    found = {}
    for probes in (0, 2):
        job = write_job({"cluster.max_workers": 2, "recover": {"tokens": "64k", "probes": probes}})
        found[probes] = {stage["name"]: stage["operations"] for stage in plan_of(inlay, job)["stages"]}
    assert found[2]["recover"] == pytest.approx(found[0]["recover"] * 2 / 3), "one of three is trained before"
    assert found[2]["assemble"] > found[0]["assemble"] + found[0]["recover"] / 3


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
