"""`inlay tune` with real Ray, Optuna and MLflow: trials, resume, refusals, and the job that it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from commands import Command

from inlay.nas.job import Job
from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMENT = "# what people wrote here stays"


@pytest.fixture(scope="session")
def tune_values(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> dict[str, Any]:
    """A search whose trials take a second each; its rates are too low to move anything."""
    return {
        "parent": str(tiny_parent("llama")),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 2048},
        },
        "space": {"attention": ["linear", "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
        "distill": {"tokens": 4096, "learning_rate": 1e-4, "batch_size": 4},
        "score": {"pairs": 0},
        "hardware": {"scenarios": [{"prefill": 16, "generate": 4}]},
        "budget": {"parameters": "0.85x"},
        "recover": {"tokens": 8192, "learning_rate": 1e-4, "rate": "pinned", "batch_size": 4},
        "cluster": {"max_workers": 2},
    }


def write(folder: Path, values: dict[str, Any]) -> None:
    (folder / "job.yaml").write_text(f"{COMMENT}\n{yaml.safe_dump(values)}")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tune_values: dict[str, Any], inlay_here: Run) -> Any:
    """The folder of a study of six trials, and what the command printed as JSON."""
    folder = tmp_path_factory.mktemp("tune")
    write(folder, tune_values)
    done = inlay_here("tune", "job.yaml", "--trials", "6", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder, json.loads(done.stdout)


@pytest.mark.slow
def test_the_first_trial_is_the_jobs_own(tuned: Any, tune_values: dict[str, Any]) -> None:
    _, told = tuned
    first = told["trials"][0]
    assert first["is_job"]
    assert first["settings"]["recover.learning_rate"] == tune_values["recover"]["learning_rate"]
    assert len(told["trials"]) == sum(told["counts"].values()) == 6
    assert told["best"]["kl_nats"] == min(row["kl_nats"] for row in told["trials"] if row["end"] == "complete")


@pytest.mark.slow
def test_the_best_is_compared_on_text_that_judged_no_trial(tuned: Any) -> None:
    """Rates ten times higher are in the space, and at these tokens any of them is better."""
    _, told = tuned
    compared = told["compared"]
    assert compared["is_better"]
    assert compared["gain_nats"] > 2.92 * compared["standard_error"] > 0
    assert compared["seeds"] == [1, 2, 3]
    assert told["output"] == "job.tuned.yaml"


@pytest.mark.slow
def test_the_tuned_job_is_the_old_one_but_for_its_settings(tuned: Any) -> None:
    folder, told = tuned
    text = (folder / "job.tuned.yaml").read_text()
    assert text.startswith("# Tuned from job.yaml by `inlay tune`, 6 trials (kl):\n# KL ")
    assert "% less (3 seeds, on the score text), +- " in text.splitlines()[1]
    assert f"\n{COMMENT}\n" in text
    own, tuned_job = Job.load(folder / "job.yaml").to_dict(), Job.load(folder / "job.tuned.yaml").to_dict()
    for name, value in told["best"]["settings"].items():
        section, field = name.split(".")
        assert tuned_job[section][field] == value
        own[section][field] = value
    assert tuned_job == own


@pytest.mark.slow
def test_others_read_the_study_by_optunas_own_interface(tuned: Any) -> None:
    folder, told = tuned
    study = optuna.load_study(study_name=told["study"], storage=f"sqlite:///{folder}/job.search/tune.db")
    assert len(study.trials) == 6
    assert study.best_value == told["best"]["kl_nats"]
    complete = study.trials[0]
    assert sorted(complete.intermediate_values) == list(range(7)), "the start and six judgements"
    assert complete.value == min(complete.intermediate_values.values())


@pytest.mark.slow
def test_trials_are_nested_runs_with_optunas_pictures_beside_them(tuned: Any) -> None:
    import mlflow

    folder, told = tuned
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("inlay")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.data.tags["inlay.study"] == told["study"]
    assert {run.data.tags["inlay.end"] for run in nested} <= {"complete", "pruned"}
    assert len(nested) == 6
    (first,) = (run for run in nested if run.data.tags["mlflow.runName"] == "trial 0")
    row = told["trials"][0]
    assert first.data.params == {name: str(value) for name, value in row["settings"].items()}
    assert first.data.metrics["best_held_out_kl_nats"] == row["kl_nats"]
    history = client.get_metric_history(first.info.run_id, "held_out_kl_nats")
    assert sorted(point.step for point in history) == list(range(7))
    pictures = {Path(item.path).stem for item in client.list_artifacts(parent.info.run_id, "pictures")}
    assert {"optimization_history", "intermediate_values", "slice", "parallel_coordinate"} <= pictures


@pytest.mark.slow
def test_two_trials_run_at_once(tuned: Any) -> None:
    folder, told = tuned
    study = optuna.load_study(study_name=told["study"], storage=f"sqlite:///{folder}/job.search/tune.db")
    spans = [(trial.datetime_start, trial.datetime_complete) for trial in study.trials]
    assert any(one[0] < two[0] < one[1] for one in spans for two in spans if one is not two)


@pytest.mark.slow
def test_again_nothing_is_done_twice(tuned: Any, inlay_here: Run) -> None:
    folder, told = tuned
    before = records(folder)
    again = inlay_here("tune", "job.yaml", "--trials", "6", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == told
    assert records(folder) == before


@pytest.mark.slow
def test_more_trials_are_others(tuned: Any, inlay_here: Run) -> None:
    folder, _ = tuned
    more = inlay_here("tune", "job.yaml", "--trials", "7", cwd=folder)
    assert more.returncode == 0, more.stderr
    assert "7 trials" in more.stdout
    assert "study " in more.stdout
    drawn = [tuple(trial.params.values()) for trial in load(folder).trials]
    assert len(set(drawn)) == 7, "a study that goes on draws nothing again"


@pytest.mark.slow
def test_the_search_of_the_job_goes_on_from_what_was_done_for_the_child(tuned: Any, inlay_here: Run) -> None:
    folder, _ = tuned
    before = {stage: records(folder, stage) for stage in ("distill", "score")}
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    for stage, held in before.items():
        after = records(folder, stage)
        assert {name: after[name] for name in held} == held != {}


def records(folder: Path, stage: str = "tune") -> dict[str, int]:
    """Records of a stage, with the time of each."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "job.search" / "records" / stage).iterdir()}


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/job.search/tune.db")


@pytest.mark.slow
def test_the_study_of_another_job_is_refused(
    tuned: Any, tmp_path: Path, tune_values: dict[str, Any], inlay_here: Run
) -> None:
    folder, told = tuned
    write(tmp_path, {**tune_values, "recover": {**tune_values["recover"], "tokens": 4096}})
    shutil.copytree(folder / "job.search", tmp_path / "job.search")
    done = inlay_here("tune", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"inlay: --storage: sqlite:///{tmp_path}/job.search/tune.db holds the study of another job ({told['study']}), "
        "since its settings, text, parent or workspace are others; name another file, or delete that one"
    )


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"recover": {"tokens": 0}}, [], "recover.tokens: is 0, so that nothing is trained after assembly"),
        ({"recover": {"workers": 2}}, [], "recover.workers: is 2, and a trial trains in one worker"),
        ({"rounds": 2}, [], "rounds: is 2, and trials are of one search; set it to 1, and give what is found to all"),
        ({"distill": {"tokens": 0}, "space": {"attention": ["no_op"], "ffn": ["no_op"]}}, ["--metric", "assembled"],
         "distill.tokens: is 0, so that no variant is trained"),
        ({}, ["--storage", "nodb://u:secret@host/x"], "--storage: nodb://***@host/x cannot be opened ("),
        ({}, ["--timeout", "soon"], "--timeout: "),
        ({}, ["--output", "job.yaml"], "--output: job.yaml is already there; name another file, or remove it"),
        ({}, ["--output", "no/where.yaml"], "--output: there is no folder "),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused_before_anything_is_done(
    change: dict[str, Any], options: list[str], said: str, tmp_path: Path, tune_values: dict[str, Any], inlay_here: Run
) -> None:
    changed = {name: tune_values[name] | new if isinstance(new, dict) else new for name, new in change.items()}
    write(tmp_path, {**tune_values, **changed})
    done = inlay_here("tune", "job.yaml", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"inlay: {said}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "job.search").exists()


@pytest.mark.slow
def test_local_settings_alone_are_tuned_on_what_is_assembled(
    tmp_path: Path, tune_values: dict[str, Any], inlay_here: Run
) -> None:
    write(tmp_path, {**tune_values, "recover": {"tokens": 0}})
    done = inlay_here("tune", "job.yaml", "--trials", "3", "--metric", "assembled", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name.split(".")[0] for name in told["best"]["settings"]} == {"distill"}
    assert [row["end"] for row in told["trials"]] == ["complete"] * 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_was_stopped_goes_on(
    how: signal.Signals, tmp_path: Path, tune_values: dict[str, Any], inlay_command: Run
) -> None:
    values = {**tune_values, "recover": {**tune_values["recover"], "tokens": 16384}}
    write(tmp_path, values)
    process = Command("tune", "job.yaml", "--trials", "4", cwd=tmp_path, session=True)
    wait(lambda: sum(state == "COMPLETE" for state in states(tmp_path)) >= 1 and "RUNNING" in states(tmp_path))
    if how == signal.SIGINT:
        process.send_signal(how)
        done = process.completed(60)
        assert done.returncode == 130
        assert done.stderr.endswith("inlay: stopped; finished trials are kept, the same command goes on from there\n")
    else:
        os.killpg(process.pid, how)
        process.wait()
    time.sleep(1)
    before = load(tmp_path).trials
    left = [trial for trial in before if trial.state.name == "RUNNING"]
    assert left
    done = inlay_command("tune", "job.yaml", "--trials", "4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, after = json.loads(done.stdout), load(tmp_path).trials
    assert len(told["trials"]) == 4
    finished = [trial for trial in before if trial.state.is_finished()]
    assert [after[trial.number].values for trial in finished] == [trial.values for trial in finished]
    assert all(after[trial.number].state.name == "FAIL" for trial in left)
    again = [trial for trial in after if "inlay.first_number" in trial.user_attrs]
    # One that was killed before it had its settings is replaced by any other.
    assert [trial.params for trial in again] == [trial.params for trial in left if trial.params]
    assert all(trial.state.is_finished() and trial.state.name != "FAIL" for trial in again)


def wait(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def states(folder: Path) -> list[str]:
    if not Workspace(folder / "job.search").store.exists("tune.db"):
        return []
    try:
        return [trial.state.name for trial in load(folder).trials]
    except (KeyError, ValueError, RuntimeError, optuna.exceptions.StorageInternalError):
        return []  # it is just being made
