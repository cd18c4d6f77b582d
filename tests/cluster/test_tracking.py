"""The tracker on real MLflow: an sqlite file, a real server, the server killed in the middle, secrets, resume."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from inlay.cluster.tracking import Tracker, tracking_uri
from inlay.cluster.tracking_link import end_job_run
from inlay.cluster.urls import redacted

MlflowDb = Callable[[Path], str]


class Server:
    """A real `mlflow server` on a free port, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + 200
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.3)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_db: MlflowDb) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    mlflow_db(server.folder)
    server.start()
    yield server
    server.kill()


def only_search(uri: str, experiment: str) -> Run:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], "tags.`inlay.run` = 'search'")
    assert len(runs) == 1
    return runs[0]


def log_everything(tracker: Tracker, folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    tracker.start("stories", {"team": "blue"})
    tracker.params({"seed": 0, "budget.runtime": "0.6x", "long": "x" * 9000})
    for step in range(5):
        tracker.metrics({"loss": 1 / (step + 1), "seconds": step}, step=step)
    tracker.json("job.json", {"seed": 0})
    tracker.text("notes/readme.md", "# notes")
    tracker.table("tables/scores.json", [{"layer": 0, "kl": 0.1}, {"layer": 1, "kl": 0.2, "note": "é"}])
    figure = Figure()
    figure.subplots().plot([1, 2])
    tracker.figure("pictures/front.png", figure)
    tracker.dataset("distill", "a" * 64, {"sequences": 10}, "text.txt")
    exported = folder / "exported"
    exported.mkdir()
    (exported / "config.json").write_text("{}")
    tracker.file(exported / "config.json", "files")
    child = tracker.child("recover child", "recover", {})
    child.metrics({"kl": 0.5}, step=3)
    child.end()


def check_everything(uri: str, experiment: str, folder: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    run = only_search(uri, experiment)
    assert run.info.run_name == "stories"
    assert run.info.status == "FINISHED"
    assert run.data.tags["team"] == "blue"
    assert run.data.params["budget.runtime"] == "0.6x"
    assert len(run.data.params["long"]) == 6000
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [1 / n for n in range(1, 6)]
    paths = {
        file.path
        for top in ("", "notes", "tables", "pictures", "files")
        for file in client.list_artifacts(run.info.run_id, top)
    }
    assert {"job.json", "notes/readme.md", "tables/scores.json", "pictures/front.png"} <= paths
    assert "files/config.json" in paths
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "tables/scores.json", str(folder))).read_text())
    assert table == {"columns": ["layer", "kl", "note"], "data": [[0, 0.1, None], [1, 0.2, "é"]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/scores.json", "type": "table"}]
    picture = Path(client.download_artifacts(run.info.run_id, "pictures/front.png", str(folder)))
    assert picture.read_bytes().startswith(b"\x89PNG")
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("distill", "a" * 36)
    (child,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert (child.info.run_name, child.data.metrics["kl"]) == ("recover", 0.5)


def test_everything_arrives_in_sqlite(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    warnings: list[str] = []
    tracker = Tracker(uri, "stories", warnings.append, spool=tmp_path / "spool")
    log_everything(tracker, tmp_path)
    tracker.end()
    assert warnings == []
    assert tracker.link() is None
    check_everything(uri, "stories", tmp_path)
    assert (tmp_path / "spool" / "unsent.jsonl").read_text() == ""
    assert (tmp_path / "mlartifacts").is_dir()


def test_everything_arrives_at_a_server(tmp_path: Path, server: Server) -> None:
    warnings: list[str] = []
    tracker = Tracker(server.uri, "stories", warnings.append, spool=tmp_path / "spool")
    log_everything(tracker, tmp_path)
    tracker.end()
    assert warnings == []
    check_everything(server.uri, "stories", tmp_path)
    link = tracker.link()
    assert link is not None
    assert link.startswith(f"{server.uri}/#/experiments/")
    assert link.endswith(f"/runs/{tracker.run_id()}?workflowType=machine_learning")


def test_a_resumed_search_continues_its_run(tmp_path: Path, server: Server) -> None:
    warnings: list[str] = []
    for part in range(2):
        tracker = Tracker(server.uri, "resumed", warnings.append, spool=tmp_path / "spool")
        tracker.start("stories", {"part": str(part)})
        tracker.params({"seed": 0, "tokens": part})
        tracker.metrics({"loss": part}, step=part)
        tracker.end("KILLED" if part == 0 else "FINISHED")
    run = only_search(server.uri, "resumed")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "tokens": "0"}
    assert run.data.tags["changed.tokens"] == "1"
    history = MlflowClient(tracking_uri=server.uri).get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 1.0)]
    assert warnings == []


def test_a_run_deleted_in_mlflow_is_made_anew(tmp_path: Path, server: Server) -> None:
    for _ in range(2):
        tracker = Tracker(server.uri, "deleted", spool=tmp_path / "spool")
        tracker.start("stories")
        tracker.end()
        identifier = tracker.run_id()
        assert identifier is not None
        MlflowClient(tracking_uri=server.uri).delete_run(identifier)
    tracker = Tracker(server.uri, "deleted", spool=tmp_path / "spool")
    tracker.start("stories")
    tracker.end()
    assert only_search(server.uri, "deleted").info.run_id == tracker.run_id()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_never_stops_a_search(tmp_path: Path, server: Server) -> None:
    warnings: list[str] = []
    tracker = Tracker(server.uri, "unplugged", warnings.append, spool=tmp_path / "spool")
    tracker.start("stories")
    tracker.metrics({"loss": 3.0}, step=0)
    assert tracker.flush(60)
    server.kill()
    started = time.monotonic()
    for step in range(1, 200):
        tracker.metrics({"loss": 3.0 / step}, step=step)
    tracker.table("tables/scores.json", [{"layer": 0}])
    assert time.monotonic() - started < 2
    tracker.end()
    assert len(warnings) == 2
    assert warnings[0].startswith(f"the tracker {server.uri} does not answer, the search goes on: ")
    assert "201 tracking entries could not be sent" in warnings[1]
    assert f"{tmp_path}/spool/unsent.jsonl" in warnings[1]
    server.start()
    warnings.clear()
    tracker = Tracker(server.uri, "unplugged", warnings.append, spool=tmp_path / "spool")
    tracker.start("stories")
    tracker.end()
    run = only_search(server.uri, "unplugged")
    history = MlflowClient(tracking_uri=server.uri).get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(200))
    assert [file.path for file in MlflowClient(server.uri).list_artifacts(run.info.run_id)] == ["tables"]
    assert run.info.status == "FINISHED"
    assert warnings == []


def test_a_tracker_that_never_was_there(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker("http://user:secret-word@127.0.0.1:9", "none", warnings.append, spool=tmp_path / "spool")
    assert tracker.start("stories") is None
    tracker.end()
    assert len(warnings) == 2
    assert all("secret-word" not in warning for warning in warnings)
    assert "http://***@127.0.0.1:9" in warnings[0]


KILLED = """
import os, sys
from pathlib import Path
from inlay.cluster.tracking import Tracker
tracker = Tracker(sys.argv[1], "killed", print, spool=Path(sys.argv[2]))
tracker.start("stories")
for step in range(300):
    tracker.metrics({"loss": step}, step=step)
    tracker.flush(60) if step == 100 else None
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_search_did_not_send_is_sent_by_the_next(tmp_path: Path, mlflow_db: MlflowDb) -> None:
    uri = mlflow_db(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, uri, str(tmp_path / "spool")], check=False)
    with (tmp_path / "spool" / "unsent.jsonl").open("a") as stream:
        stream.write('{"ref": "search", "ki')
    warnings: list[str] = []
    tracker = Tracker(uri, "killed", warnings.append, spool=tmp_path / "spool")
    tracker.start("stories")
    tracker.end()
    run = only_search(uri, "killed")
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(300))
    assert warnings == []


def test_secrets_are_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_db: MlflowDb) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "abcdefghijkl")
    assert redacted("s3://key:word@host/path and abcdefghijkl") == "s3://***@host/path and ***"
    uri = mlflow_db(tmp_path)
    tracker = Tracker(uri, "secret", spool=tmp_path / "spool")
    tracker.start("stories", {"tag": "abcdefghijkl"})
    tracker.params({"uri": "postgresql://me:pass-word@db/x", "token": "abcdefghijkl"})
    tracker.text("notes.txt", "token abcdefghijkl")
    tracker.end()
    run = only_search(uri, "secret")
    assert run.data.params == {"uri": "postgresql://***@db/x", "token": "***"}
    assert run.data.tags["tag"] == "***"
    folder = Path(MlflowClient(tracking_uri=uri).download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (folder / "notes.txt").read_text() == "token ***"
    assert b"abcdefghijkl" not in (tmp_path / "mlflow.db").read_bytes()
    assert "abcdefghijkl" not in "".join(path.read_text() for path in (tmp_path / "spool").iterdir())


def test_the_uri_is_the_given_one_then_the_environment_then_sqlite_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri(None) == "http://tracker:5000"
    assert tracking_uri("http://other:5000") == "http://other:5000"


@pytest.mark.slow
def test_it_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    script = KILLED.replace("os.kill(os.getpid(), 9)", "tracker.end()")
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "spool")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_an_entry_that_can_never_be_sent_is_put_aside_and_said(tmp_path: Path, mlflow_db: MlflowDb) -> None:
    """One of another version, which no retry makes right; what comes after it is sent all the same."""
    spool = tmp_path / "spool"
    spool.mkdir()
    bad = json.dumps({"ref": "search", "kind": "nonsense", "values": {"x": 1}})
    (spool / "unsent.jsonl").write_text(bad + "\n")
    warnings: list[str] = []
    uri = mlflow_db(tmp_path)
    tracker = Tracker(uri, "aside", warnings.append, spool=spool)
    tracker.start("stories")
    tracker.metrics({"loss": 1.0})
    tracker.end()
    run = only_search(uri, "aside")
    assert run.data.metrics == {"loss": 1.0}
    assert run.info.status == "FINISHED"
    assert (spool / "unsent.jsonl").read_text() == ""
    assert json.loads((spool / "aside.jsonl").read_text()) == json.loads(bad)
    (said,) = [warning for warning in warnings if "aside" in warning]
    assert said.startswith(f"one entry (nonsense of the run `search`) cannot be sent to {uri}: ")
    assert f"it is put aside in {spool}/aside.jsonl, and the others are sent" in said


def test_a_resumed_run_is_told_each_step_once(tmp_path: Path, mlflow_db: MlflowDb) -> None:
    uri = mlflow_db(tmp_path)
    for steps in (4, 6):
        tracker = Tracker(uri, "again", spool=tmp_path / "spool")
        tracker.start("stories")
        for step in range(steps):
            tracker.metrics({"loss": 1 / (step + 1)}, step=step)
        tracker.metrics({"distill.seconds": float(steps)})
        tracker.end()
    run = only_search(uri, "again")
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(6))
    assert run.data.metrics["distill.seconds"] == 6.0


def test_a_tracker_that_hangs_is_left_in_time_when_the_search_is_stopped(tmp_path: Path) -> None:
    """Ray ends a stopped job by force after 8 seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracker = Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "silent", spool=tmp_path / "spool")
        tracker.start("stories")
        started = time.monotonic()
        tracker.end("KILLED")
        assert time.monotonic() - started < 8


def test_the_run_of_a_job_that_was_killed_is_ended_by_those_who_stop_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("INLAY_JOB_TAGS", json.dumps({"inlay.job": "stopped-job"}))
    tracker = Tracker(server.uri, "ended", spool=tmp_path / "spool")
    tracker.start("stories")
    ended, trained = tracker.child("a", "uniform"), tracker.child("b", "child")
    ended.end()
    trained.metrics({"kl": 0.5})
    assert tracker.flush(60)
    tracker.close()  # and no word of an end, as after SIGKILL
    assert only_search(server.uri, "ended").info.status == "RUNNING"
    end_job_run(server.uri, "ended", "stopped-job")
    assert only_search(server.uri, "ended").info.status == "KILLED"
    client = MlflowClient(tracking_uri=server.uri)
    statuses = {ref: client.get_run(str(tracker.run_id(ref))).info.status for ref in ("a", "b")}
    assert statuses == {"a": "FINISHED", "b": "KILLED"}
    client.set_terminated(only_search(server.uri, "ended").info.run_id, "FINISHED")
    end_job_run(server.uri, "ended", "stopped-job")
    assert only_search(server.uri, "ended").info.status == "FINISHED"


def test_numbers_that_mlflow_refuses_take_no_others_with_them(tmp_path: Path, mlflow_db: MlflowDb) -> None:
    uri = mlflow_db(tmp_path)
    warnings: list[str] = []
    tracker = Tracker(uri, "refused", warnings.append, spool=tmp_path / "spool")
    tracker.start("stories")
    runs = [tracker, tracker.child("a", "child"), tracker.child("b", "uniform")]
    for step in range(6):
        for run in runs:
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        if step == 3:
            runs[1].metrics({"../up": 1.0})
    tracker.end()
    (said,) = warnings
    assert said.startswith("the tracker refused metrics of the run `a`: ")
    client = MlflowClient(tracking_uri=uri)
    for ref in ("search", "a", "b"):
        history = client.get_metric_history(str(tracker.run_id(ref)), "loss")
        assert [(metric.step, metric.value) for metric in history] == [(step, 1 / (step + 1)) for step in range(6)]


def test_a_run_below_is_found_again_by_its_name_and_called_what_it_is_now(tmp_path: Path, mlflow_db: MlflowDb) -> None:
    """The new head has no spool; a run that was ended and is told more of is open meanwhile."""
    uri = mlflow_db(tmp_path)
    for spool, name in (("head", "solution a"), ("new head", "child")):
        tracker = Tracker(uri, "below", spool=tmp_path / spool)
        tracker.start("stories", creation="one")
        run = tracker.child("solution a", name, {"inlay.solution": "a"}, "one-a")
        run.metrics({"kl": 0.5}, step=1)
        run.end()
        run = tracker.child("solution a", name, {"inlay.solution": "a"}, "one-a")
        assert tracker.flush(60)
        client = MlflowClient(tracking_uri=uri)
        assert client.get_run(str(tracker.run_id("solution a"))).info.status == "RUNNING"
        run.end("KILLED")
        tracker.end()
    search = only_search(uri, "below")
    below = f"tags.`mlflow.parentRunId` = '{search.info.run_id}'"
    (found,) = client.search_runs([search.info.experiment_id], below)
    assert (found.info.run_name, found.info.status) == ("child", "KILLED")
    assert [point.step for point in client.get_metric_history(found.info.run_id, "kl")] == [1]


@pytest.mark.slow
def test_a_run_began_when_it_was_told_and_not_when_it_was_sent(tmp_path: Path, mlflow_db: MlflowDb) -> None:
    spool = tmp_path / "spool"
    tracker = Tracker("http://127.0.0.1:9", "late", spool=spool)
    tracker.start("stories")
    tracker.end()
    told = [json.loads(line) for line in (spool / "unsent.jsonl").read_text().splitlines()]
    uri = mlflow_db(tmp_path)
    tracker = Tracker(uri, "late", spool=spool)
    assert tracker.flush(60)
    tracker.close()
    run = only_search(uri, "late")
    assert [run.info.start_time, run.info.end_time] == [entry["values"]["at"] for entry in told]
