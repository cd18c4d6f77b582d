"""MLflow behind its basic-auth app: MLflow's own variables open it, and no password is written anywhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inlay.cluster.http import is_healthy
from inlay.cluster.processes import end, free_port, spawn
from inlay.cluster.tracking import JOB_TAG, TAGS_VARIABLE, Tracker
from inlay.cluster.tracking_link import job_page

PASSWORD = "correct-horse-battery"

pytest.importorskip("flask_wtf", reason="mlflow[auth] is an optional dependency of tests")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def uri(folder: Path) -> Iterator[str]:
    """An MLflow server that asks for a name and a password, started as docs/cluster.md says."""
    ini = folder / "basic_auth.ini"
    ini.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/basic_auth.db\n"
        "admin_username = ada\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    port = free_port(0)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    server = spawn([*command, "--host", "127.0.0.1", "--port", str(port)], environment, folder / "mlflow.log")
    deadline = time.monotonic() + 180
    while not is_healthy(f"http://127.0.0.1:{port}/health"):
        assert server.alive, (folder / "mlflow.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    end(server)


@pytest.fixture(autouse=True)
def credentials(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the administrator of a cluster sets for its jobs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv(TAGS_VARIABLE, json.dumps({JOB_TAG: "stories-1"}))


@pytest.mark.slow
def test_a_run_gets_through_and_the_password_does_not(uri: str, folder: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker(None, "guarded", warnings.append, spool=tmp_path / "spool")
    tracker.start("search", {"note": f"it is {PASSWORD}"})
    tracker.params({"password": PASSWORD, "seed": 0})
    tracker.json("job.json", {"url": f"http://ada:{PASSWORD}@mlflow"})
    tracker.metrics({"kl": 0.5})
    tracker.end()
    assert warnings == []
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("guarded")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.data.metrics, run.info.status) == ({"kl": 0.5}, "FINISHED")
    assert run.data.params == {"password": "***", "seed": "0"}
    assert run.data.tags["note"] == "it is ***"
    assert (page := job_page(uri, "guarded", "stories-1")) is not None
    assert f"/runs/{run.info.run_id}?" in page
    for place in (folder, tmp_path):
        for path in place.rglob("*"):
            assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    mine = psutil.Process().children(recursive=True)
    assert len(mine) >= 1
    assert not any(PASSWORD in " ".join(process.cmdline()) for process in mine)


@pytest.mark.slow
def test_a_wrong_password_stops_no_search_and_says_why(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-long-word")
    warnings: list[str] = []
    tracker = Tracker(None, "guarded", warnings.append, spool=tmp_path / "spool")
    tracker.start("search")
    assert not tracker.flush(5)
    tracker.close(patience_seconds=1)
    first, last = warnings
    assert first.startswith(f"the tracker {uri} does not answer, the search goes on: ")
    assert "401" in first
    assert "1 tracking entries could not be sent" in last
    assert "another-long-word" not in first + last
    assert job_page(uri, "guarded", "stories-1") is None
