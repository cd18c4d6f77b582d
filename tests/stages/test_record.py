"""The MLflow run of a search: the same one wherever it computes, another one for another search."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster.cost import Cost
from inlay.cluster.events import PieceEvent
from inlay.cluster.lock import locked
from inlay.cluster.runtime import connect
from inlay.nas.job import Job
from inlay.nas.loop.search import Search, cluster_settings
from inlay.nas.report.best import Best
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.recording.record import SearchRecord
from inlay.nas.stages.recording.tracked import TrackedSearch
from inlay.nas.stages.recording.unsent import send_unsent
from inlay.nas.stages.run import open_job_parent
from inlay.nas.workspace import Workspace

Make = Callable[..., Job]


@pytest.fixture
def make(
    tmp_path: Path,
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    mlflow_db: Callable[[Path], str],
) -> Make:
    """`make(cluster={...})`: a job with these sections."""

    def job(**sections: Any) -> Job:
        values: dict[str, Any] = {
            "parent": str(tiny_parent("llama")),
            "data": {"distill": {"path": str(texts[0]), "sequence_length": 32}, "validate": {"path": str(texts[1])}},
            "space": {"attention": ["no_op"]},
            "budget": {"parameters": "0.9x"},
            "tracking": {"uri": mlflow_db(tmp_path)},
        }
        return Job.from_dict(values | sections)

    return job


def run_of(job: Job, place: Workspace) -> str:
    """Starts and ends the record of a search; the id of its run."""
    record = SearchRecord(job, place, Reporter())
    record.start()
    record.end(None)
    identifier = record.tracked.run_id()
    assert identifier is not None
    return identifier


def run_stage(
    job: Job,
    place: Workspace,
    name: str,
    error: BaseException | None = None,
    spend: Callable[[Search], None] = lambda search: None,
) -> dict[str, Any]:
    """Starts the record of a search, runs one stage that does nothing but `spend`, and may end by an error; run.json
    after it."""
    record = SearchRecord(job, place, Reporter())
    with connect(cluster_settings(job, place)) as cluster:
        search = Search(job, place, open_job_parent(job), cluster, record.reporter)
        record.start()
        assert record.tracked.tracker.flush(200)
        try:
            with record.stage(name, search):
                spend(search)
                if error is not None:
                    raise error
        except (KeyboardInterrupt, RuntimeError) as stopped:
            record.end(stopped)
        else:
            record.end(None)
    return dict(place.read_json("run.json"))


def test_run_json_has_the_tracked_run_from_the_first_stage_on(make: Make, tmp_path: Path) -> None:
    job, place = make(), Workspace(tmp_path / "w.search")
    run = run_stage(job, place, "measure")
    assert run["mlflow_run_id"]
    assert run["finished"] is None
    import mlflow

    assert mlflow.MlflowClient(job.tracking.uri).get_run(run["mlflow_run_id"]).info.status == "FINISHED"


def test_a_search_that_goes_on_adds_to_its_stages(make: Make, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "w.search")
    first = run_stage(make(), place, "measure", KeyboardInterrupt())["stages"]
    run_stage(make(), place, "measure")
    stages = run_stage(make(), place, "distill")["stages"]
    assert [stage["name"] for stage in stages] == ["measure", "distill"]
    assert stages[0]["seconds"] > first[0]["seconds"] > 0
    # Another search of the workspace has its own times.
    assert [stage["name"] for stage in run_stage(make(seed=1), place, "score")["stages"]] == ["score"]


def test_a_search_that_goes_on_adds_to_what_it_has_cost(make: Make, tmp_path: Path) -> None:
    import mlflow

    def costs(spent: Cost, error: BaseException | None = None) -> dict[str, Any]:
        def spend(search: Search) -> None:
            search.spent = spent
            search.on_spent()

        return run_stage(make(), place, "distill", error, spend)

    place = Workspace(tmp_path / "w.search")
    for hours, error in ((0.5, KeyboardInterrupt()), (0.75, RuntimeError("a worker failed"))):
        costs(Cost(hours), error)
    run = costs(Cost(1.0, 0.25))
    (stage,) = run["stages"]
    assert (stage["cpu_hours"], stage["gpu_hours"]) == (2.25, 0.25)
    metrics = mlflow.MlflowClient(make().tracking.uri).get_run(run["mlflow_run_id"]).data.metrics
    told = {name: value for name, value in metrics.items() if name.endswith("_hours")}
    assert told == {
        "distill/cpu_hours": 2.25,
        "distill/gpu_hours": 0.25,
        "cost/cpu_hours": 2.25,
        "cost/gpu_hours": 0.25,
    }


def test_what_a_stage_has_cost_is_kept_while_it_runs(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed writes nothing more."""
    monkeypatch.setattr("inlay.nas.stages.recording.record.SECONDS_BETWEEN_WRITES", 0.0)
    job, place, kept = make(), Workspace(tmp_path / "w.search"), []

    def spend(search: Search) -> None:
        for hours in (0.5, 0.75):
            search.spent = Cost(hours)
            search.on_spent()
            kept.append(place.read_json("run.json")["stages"])

    run_stage(job, place, "distill", spend=spend)
    assert [stage["cpu_hours"] for (stage,) in kept] == [0.5, 0.75], "a sum is written, not added again"


def test_the_best_architecture_is_told_to_the_tracker(make: Make, tmp_path: Path) -> None:
    job, place = make(), Workspace(tmp_path / "w.search")
    record = SearchRecord(job, place, Reporter())
    record.start()
    record.tracked.best(Best("predicted", 0.41, 0.58, 0.77))
    record.tracked.best(Best("true", 0.36, 0.57, 0.77))
    record.end(None)
    import mlflow

    identifier = record.tracked.run_id()
    assert identifier is not None
    client = mlflow.MlflowClient(job.tracking.uri)
    metrics = client.get_run(identifier).data.metrics
    assert metrics == pytest.approx(
        {
            "best/predicted_kl_nats": 0.41,
            "best/true_kl_nats": 0.36,
            "best/runtime_ratio": 0.57,
            "best/memory_ratio": 0.77,
        }
    )
    history = client.get_metric_history(identifier, "best/runtime_ratio")
    assert [(point.step, point.value) for point in history] == [(0, 0.58), (1, 0.57)]


def test_a_training_that_goes_on_after_a_lost_worker_is_told_once(make: Make, tmp_path: Path) -> None:
    import mlflow

    job, place = make(), Workspace(tmp_path / "w.search")
    record = SearchRecord(job, place, Reporter())
    record.start()
    # The worker was lost after step 6; the other begins at step 3.
    for step in (1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 8):
        numbers = {"step": step, "loss": 1 / step}
        record.tracked.numbers(PieceEvent("progress", "layer 0001", "distill", 0, 1, None, step / 8, "", numbers))
        record.tracked.numbers(PieceEvent("progress", "abc", "recover", 0, 1, None, step / 8, "", numbers))
    record.end(None)
    client = mlflow.MlflowClient(job.tracking.uri)
    experiment = client.get_experiment_by_name("inlay")
    runs = client.search_runs([experiment.experiment_id])
    told = {
        name: [point.step for point in client.get_metric_history(run.info.run_id, name)]
        for run in runs
        for name in run.data.metrics
    }
    assert told == {"distill/loss/layer_0001": list(range(1, 9)), "recover/loss": list(range(1, 9))}


def test_further_figures_leave_the_run_to_whom_it_is_of(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    job, place = make(), Workspace(tmp_path / "w.search")
    monkeypatch.setenv("LOGNAME", "ada")
    identifier = run_of(job, place)
    client = mlflow.MlflowClient(job.tracking.uri)
    before = client.get_run(identifier).data.tags
    assert before["mlflow.user"] == "ada"
    monkeypatch.setenv("LOGNAME", "bob")
    creation = place.read_json("run.json")["mlflow_creation"]
    tracked = TrackedSearch(Job.from_dict(job.to_dict()), place, Reporter())
    tracked.go_on(identifier, creation)
    tracked.tracker.metrics({"child/acc": 0.5})
    tracked.end(None)
    after = client.get_run(identifier)
    assert after.data.tags == before
    assert (after.data.metrics["child/acc"], after.info.status) == (0.5, "FINISHED")


def test_what_waits_for_the_tracker_is_sent_after_the_search(make: Make, tmp_path: Path) -> None:
    import mlflow

    job, place = make(), Workspace(tmp_path / "w.search")
    identifier = run_of(job, place)
    spool = tmp_path / "w.search" / "tracking" / job.search_digest()[:16]
    stream = io.StringIO()
    send_unsent(job, place, Reporter(stream))
    assert stream.getvalue() == ""
    entry = {"ref": "search", "kind": "tags", "values": {"values": {"late": "yes"}}}
    (spool / "unsent.jsonl").write_text(json.dumps(entry) + "\n")
    with locked(place.store, "another run"):
        send_unsent(job, place, Reporter(stream))
    assert stream.getvalue().startswith("warning    what waits for the tracker is not sent: the workspace ")
    send_unsent(job, place, Reporter(stream))
    told = "the tracker has got what it did not answer for when the search ran"
    assert stream.getvalue().splitlines()[1:] == [told]
    assert mlflow.MlflowClient(job.tracking.uri).get_run(identifier).data.tags["late"] == "yes"
    assert (spool / "unsent.jsonl").read_text() == ""


def test_a_search_continues_its_run_wherever_it_computes(make: Make, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "w.search")
    first = run_of(make(), place)
    assert run_of(make(cluster={"max_workers": 2, "cpus_per_worker": 2}), place) == first
    assert run_of(make(cluster={"address": "ray://head:10001"}), place) == first
    assert run_of(make(recover={"workers": 2, "sharding": "full"}), place) == first


@pytest.mark.parametrize("url", [False, True])
def test_another_search_of_the_workspace_has_its_own_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = Workspace(f"memory://{tmp_path.name}/w.search" if url else tmp_path / "w.search")
    first = run_of(make(), place)
    assert run_of(make(budget={"parameters": "0.95x"}), place) != first
    assert run_of(make(seed=1), place) != first
    assert run_of(make(), place) == first


@pytest.mark.parametrize("url", [False, True])
def test_a_head_that_was_lost_before_it_said_so_leaves_one_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: bool
) -> None:
    """The new head has none of the files that the old one kept beside the workspace."""
    import mlflow

    place = Workspace(f"memory://{tmp_path.name}/lost.search" if url else tmp_path / "lost.search")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "head"))
    lost = SearchRecord(make(), place, Reporter())
    lost.start()
    assert lost.tracked.tracker.flush(60)
    lost.tracked.tracker.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new head"))
    assert run_of(make(), place) == lost.tracked.run_id()
    client = mlflow.MlflowClient(make().tracking.uri)
    experiment = client.get_experiment_by_name("inlay")
    assert len(client.search_runs([experiment.experiment_id])) == 1
