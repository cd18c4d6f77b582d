"""One whole search with two workers, read back from the workspace, from MLflow, and from a second environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.cluster.account import account_name
from inlay.nas.job import Job
from inlay.nas.pieces.texts import TEXTS
from inlay.nas.report.best import KIND
from inlay.nas.stages.export import export_child
from inlay.nas.stages.pipeline import STAGES
from inlay.nas.tables.architecture import identify
from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FIGURES = (
    "kl_nats",
    "perplexity",
    "top1_agreement",
    "parameters",
    "weights_bytes",
    "kv_bytes_per_token",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "runtime_seconds",
)


@pytest.fixture(scope="module")
def evaluation(finished: Path) -> Any:
    return json.loads((finished / "job.search" / "evaluation.json").read_text())


def test_evaluation_has_every_figure_of_every_model(evaluation: Any) -> None:
    for name in ("parent", "child", "uniform", "depth"):
        assert all(isinstance(evaluation[name][figure], int | float) for figure in FIGURES), name
        assert (evaluation[name]["before_recover"] > 0) == (name != "parent")
        if name != "parent":
            assert "over_budget" in evaluation[name]
        predicted, found = evaluation[name]["predicted_file_bytes"], evaluation[name]["file_bytes"]
        assert predicted < found < predicted + 16_384, "names of tensors"
        assert evaluation[name]["memory_peak_bytes"] is None, "a CPU does not tell its buffers"
    assert evaluation["parent"]["kl_nats"] == 0
    assert evaluation["parent"]["top1_agreement"] == 1


def test_the_budget_holds_exactly_for_sizes(evaluation: Any) -> None:
    assert evaluation["child"]["parameters"] <= 0.8 * evaluation["parent"]["parameters"]
    assert evaluation["child"]["over_budget"] == {}


def test_recovery_helps(evaluation: Any) -> None:
    for name in ("child", "uniform", "depth"):
        assert evaluation[name]["kl_nats"] < evaluation[name]["before_recover"], name


def test_the_child_is_no_worse_than_the_baselines_before_recovery(finished: Path) -> None:
    rows = Workspace(finished / "job.search").read_table("pool")
    kept = next(row for row in rows if row["kept"])
    assert all(kept["kl_nats"] <= row["kl_nats"] for row in rows if row["origin"] in ("uniform", "depth"))


def test_candidates_and_models_are_compared_on_the_same_sequences(finished: Path, evaluation: Any) -> None:
    rows = Workspace(finished / "job.search").read_table("pool")
    kept = next(row for row in rows if row["kept"])
    assert (kept["above_kept_nats"], kept["above_kept_standard_error"]) == (0, 0)
    for row in rows:
        assert row["above_kept_nats"] == pytest.approx(row["kl_nats"] - kept["kl_nats"])
    assert all(row["above_kept_standard_error"] > 0 for row in rows if not row["kept"])
    assert evaluation["chosen"] not in evaluation["above_chosen"]
    assert all(difference["nats"] >= 0 for difference in evaluation["above_chosen"].values())


def test_score_table_has_every_offered_block_once(finished: Path) -> None:
    rows = Workspace(finished / "job.search").read_table("scores")
    keys = [(row["layer"], row["attention"], row["ffn"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert all(row["kl_nats"] >= 0 and row["standard_error"] >= 0 for row in rows)
    singles = [row for row in rows if "parent" in row["attention"] or "parent" in row["ffn"]]
    assert len(singles) == len(rows) - 4  # score.pairs


def test_counted_parameters_are_those_of_the_exported_file(finished: Path, evaluation: Any) -> None:
    from safetensors import safe_open

    with safe_open(finished / "job.search" / "child" / "model.safetensors", framework="np") as file:
        stored = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 (not a dict)
    assert stored == evaluation[evaluation["chosen"]]["parameters"]


def test_time_and_memory_of_every_stage_are_stored_and_printed(finished: Path) -> None:
    run = json.loads((finished / "job.search" / "run.json").read_text())
    names = [stage["name"] for stage in run["stages"]]
    assert names == ["measure", "distill", "score", "assemble", "recover", "evaluate", "export"]
    assert all(stage["seconds"] > 0 for stage in run["stages"])
    printed = (finished / "stdout").read_text()
    assert all(name in printed for name in names)
    assert max(len(line) for line in printed.splitlines() if str(finished) not in line) <= 80


def test_the_run_told_how_far_it_was_and_what_it_had_found(finished: Path) -> None:
    from mlflow.tracking import MlflowClient

    lines = (finished / "stderr").read_text().splitlines()
    started = [re.fullmatch(r"([a-z]+) +started · search (\d+) %, about .+ left", line) for line in lines]
    assert [match[1] for match in started if match] == list(STAGES)
    shares = [int(match[2]) for match in started if match]
    assert shares == sorted(shares)
    assert shares[0] == 0 < 90 < shares[-1]
    costs = r"runtime \d\.\d\dx, memory 0\.\d\dx"
    found = {
        kind: [
            float(match[1]) for line in lines if (match := re.fullmatch(rf"assemble   {words} (\S+), {costs}", line))
        ]
        for kind, words in KIND.items()
    }
    assert len(found["predicted"]) == 1
    assert found["true"] == sorted(set(found["true"]), reverse=True) != []
    assert found["recovered"] == sorted(set(found["recovered"]), reverse=True) != []
    run_id = json.loads((finished / "job.search" / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{finished / 'mlflow.db'}")
    for kind, told in found.items():
        history = client.get_metric_history(run_id, f"best/{kind}_kl_nats")
        assert sorted({metric.value for metric in history}, reverse=True) == pytest.approx(told, rel=1e-2)


def test_a_finished_job_does_nothing(finished: Path, inlay_command: Run) -> None:
    before = _contents(finished / "job.search")
    again = inlay_command("run", "job.yaml", cwd=finished)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert _contents(finished / "job.search") == before


def test_what_the_tracker_had_not_got_is_sent_when_the_command_is_given_again(
    finished: Path, tmp_path: Path, inlay_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished / 'mlflow.db'}")
    run = json.loads((folder / "job.search" / "run.json").read_text())
    spool = folder / "job.search" / "tracking" / run["job_digest"][:16]
    entry = {"ref": "search", "kind": "tags", "values": {"values": {"late": "yes"}}}
    (spool / "unsent.jsonl").write_text(json.dumps(entry) + "\n")
    again = inlay_here("run", "job.yaml", cwd=folder)
    assert "nothing to do" in again.stdout
    assert again.stderr.splitlines()[-1] == "the tracker has got what it did not answer for when the search ran"
    client = MlflowClient(tracking_uri=f"sqlite:///{finished / 'mlflow.db'}")
    assert client.get_run(run["mlflow_run_id"]).data.tags["late"] == "yes"
    assert "waits" not in inlay_here("run", "job.yaml", cwd=folder).stderr
    assert (spool / "unsent.jsonl").read_text() == ""


def test_scratch_is_given_back(finished: Path) -> None:
    left = sum(path.stat().st_size for path in (finished / "job.search" / "scratch").rglob("*") if path.is_file())
    assert left == 0


def test_mlflow_shows_the_search(finished: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_id = json.loads((finished / "job.search" / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{finished / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["distill.tokens"] == "8000"
    assert "| speed-up |" in run.data.tags["mlflow.note.content"]
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert {"distill/seconds", "child/kl_nats", "score/gamma"} <= set(run.data.metrics)
    for layer in range(json.loads((Path(run.data.params["parent"]) / "config.json").read_text())["num_hidden_layers"]):
        losses = client.get_metric_history(run_id, f"distill/loss/layer_{layer:04d}")
        assert max(metric.step for metric in losses) == 7  # 8,000 tokens by 8 x 128
    names = {item.path for item in client.list_artifacts(run_id)}
    assert {"job.json", "solution.json", "evaluation.json", "report.html", "log.txt", "tables", "pictures"} <= names
    assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == set(TEXTS)


def test_mlflow_says_who_ran_it_with_what(finished: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_id = json.loads((finished / "job.search" / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{finished / 'mlflow.db'}")
    run = client.get_run(run_id)
    tags = run.data.tags
    assert tags["mlflow.user"] == account_name()
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("job.yaml", "LOCAL")
    assert tags["inlay.version"] == inlay.__version__
    assert tags["inlay.digest"] == Job.load(finished / "job.yaml").search_digest()
    assert "inlay.job" not in tags, "it was not submitted"
    packages = Path(client.download_artifacts(run_id, "requirements.txt")).read_text().splitlines()
    assert packages[0].startswith("# Python 3.")
    assert f"torch=={importlib.metadata.version('torch').partition('+')[0]}" in packages
    log = Path(client.download_artifacts(run_id, "log.txt")).read_text()
    (kept,) = (finished / "job.search" / "logs").iterdir()
    assert log == kept.read_text()
    said = (finished / "stderr").read_text().splitlines()
    assert [line[20:] for line in log.splitlines()] == said
    page = Path(client.download_artifacts(run_id, "report.html")).read_text()
    assert page.startswith("<!doctype html>")
    assert "data:image/svg+xml" in page
    processor = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert len(processor) >= 1
    assert all(0 <= point.value <= 100 for point in processor)
    took = (run.info.end_time - run.info.start_time) / 1000
    assert all(0 < point.step <= took + 1 for point in processor)


def test_mlflow_has_a_run_for_every_model(finished: Path) -> None:
    from mlflow.tracking import MlflowClient

    place = Workspace(finished / "job.search")
    evaluation, run_id = place.read_json("evaluation.json"), place.read_json("run.json")["mlflow_run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{finished / 'mlflow.db'}")
    experiment = client.get_run(run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    runs = {run.data.tags["inlay.solution"]: run for run in below}
    assert len(runs) == len(below)
    assert {run.info.status for run in below} == {"FINISHED"}
    pool = {row["id"]: row for row in place.read_table("pool")}
    assert len(pool) > 3
    assert set(pool) <= set(runs)
    for name, row in pool.items():
        told = runs[name].data.metrics
        assert told["assembled/kl_nats"] == row["kl_nats"]
        assert told.get("assembled/probe_kl_nats") == row["probe_kl_nats"]
    models: dict[str, list[str]] = {}
    for model in ("child", "uniform", "depth"):
        models.setdefault(identify(evaluation[model]["architecture"]), []).append(model)
    for identifier, run in runs.items():
        assert run.info.run_name == ", ".join(models.get(identifier, [f"solution {identifier}"]))
    for identifier, (model, *_) in models.items():
        run = runs[identifier]
        assert run.data.metrics["evaluate/kl_nats"] == evaluation[model]["kl_nats"]
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "recover/kl_nats")]
        assert sorted(steps) == list(range(1, 126))  # 16,000 tokens by 128, no step told twice
        told = client.get_metric_history(run.info.run_id, "recover/tokens")
        assert {metric.value / metric.step for metric in told} == {128}
        assert max(metric.step for metric in told) == 125
        (ended,) = client.get_metric_history(run_id, "recover/seconds")
        assert min(metric.timestamp for metric in told) < ended.timestamp


def test_the_child_generates_where_only_torch_and_transformers_are(finished: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "inlay" not in entry.name and not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(entry)
    folder = tmp_path / "elsewhere"
    (finished / "job.search" / "child").rename(folder)
    try:
        program = f"""
import sys
sys.path.append({str(packages)!r})
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name == "inlay" for name in sys.modules)
try:
    import inlay
except ImportError:
    pass
else:
    raise SystemExit("inlay is here")
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
outputs = [model.generate(ids, max_new_tokens=40, do_sample=False, use_cache=cache) for cache in (True, False)]
assert outputs[0].shape[1] > ids.shape[1]
assert torch.equal(*outputs), outputs
print("equal")
"""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
        base = getattr(sys, "_base_executable", sys.executable)
        done = subprocess.run(
            [base, "-S", "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "equal" in done.stdout
    finally:
        folder.rename(finished / "job.search" / "child")


@pytest.mark.slow  # tests/modeling/test_registration.py has the same of a small child
def test_the_child_loads_after_import_inlay(finished: Path) -> None:
    program = (
        "import inlay; from transformers import AutoModelForCausalLM as A; "
        f"m = A.from_pretrained({str(finished / 'job.search' / 'child')!r}); print(type(m).__module__); "
        f"print(type(inlay.load_child({str(finished / 'job.search')!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["inlay.nas.modeling.modeling_inlay", "InlayForCausalLM"]


def test_export_writes_what_one_finished_job_left(finished: Path, tmp_path: Path) -> None:
    """Another job of the workspace came as far as its figures, and died."""
    shutil.copytree(finished, tmp_path / "copy")
    place = Workspace(tmp_path / "copy" / "job.search")
    later = place.read_json("evaluation.json")
    for name in ("child", "uniform", "depth"):
        later[name] |= {"architecture": later["parent"]["architecture"], "parameters": 1, "kl_nats": 99.0}
    place.write_json("evaluation.json", later)
    place.write_json("run.json", place.read_json("run.json") | {"finished": None})
    exported = export_child(place, "hf", tmp_path / "exported")
    child = finished / "job.search" / "child"
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == {
        path.name: path.read_bytes() for path in child.iterdir()
    }


def _contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_kept_child_recovered_best_of_those_that_no_baseline_beats(finished: Path) -> None:
    place = Workspace(finished / "job.search")
    rows = place.read_table("pool")
    probed = [row for row in rows if row["probe_kl_nats"] is not None]
    assert len(probed) == 2  # recover.probes
    baselines = [row["kl_nats"] for row in rows if row["origin"] in ("uniform", "depth")]
    (kept,) = (row for row in rows if row["kept"])
    allowed = [row["probe_kl_nats"] for row in probed if row["kl_nats"] <= min(baselines, default=float("inf"))]
    assert kept["probe_kl_nats"] == min(allowed)
    assert all(row["probe_kl_nats"] < row["kl_nats"] for row in probed)


def test_every_round_says_what_it_gained_and_how_well_it_was_predicted(finished: Path) -> None:
    rounds = Workspace(finished / "job.search").read_json("solution.json")["rounds"]
    best = [row["best_kl_nats"] for row in rounds]
    assert rounds[0]["origin"] == "pool"
    assert [row["gain_nats"] for row in rounds[1:]] == pytest.approx([a - b for a, b in pairwise(best)])
    assert all(isinstance(row["prediction_error"], float) and row["seconds"] > 0 for row in rounds)
