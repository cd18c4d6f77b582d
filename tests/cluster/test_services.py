"""`inlay up` in real life: a Ray head with its job server, an MLflow server, jobs on them, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inlay.cluster.errors import ClusterError
from inlay.cluster.http import request_json
from inlay.cluster.jobs import JobServer
from inlay.cluster.ray_token import ray_authorization
from inlay.cluster.services import (
    Services,
    ServiceSettings,
    find_services,
    ray_folder,
    start_services,
    stop_services,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="module")
def services(folder: Path) -> Iterator[Services]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_SERVICES", str(folder))
        yield start_services(ServiceSettings(folder, cpus=2, jobs_at_once=1))
        stop_services(folder)


@pytest.fixture
def server(services: Services) -> JobServer:
    assert services.ray is not None
    return JobServer(services.ray.url)


def family(services: Services) -> list[psutil.Process]:
    assert services.ray is not None
    assert services.mlflow is not None
    leaders = [psutil.Process(service.process.pid) for service in (services.ray, services.mlflow)]
    return [process for leader in leaders for process in (leader, *leader.children(recursive=True))]


def command_of(process: psutil.Process) -> list[str]:
    """Return the words of a process, none when it has ended meanwhile, waited for or not."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def running(argument: str) -> list[int]:
    """Return the processes that have `argument` as a whole argument."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if argument in process.cmdline():
                found.append(process.pid)
    return found


def submit(server: JobServer, job_id: str, command: str, **tags: str) -> None:
    server.submit(job_id, command, {"GREETING": "hello"}, tags, {"workspace": f"/searches/{job_id}"})


def test_they_answer_on_the_loopback_only_and_with_a_token(services: Services, server: JobServer, folder: Path) -> None:
    assert services.ray is not None
    assert services.mlflow is not None
    with urllib.request.urlopen(f"{services.mlflow.url}/health", timeout=10) as answer:
        assert answer.read() == b"OK"
    assert "ray_version" in request_json("GET", f"{services.ray.url}/api/version", authorization=ray_authorization())
    submit(server, "opens-all-ports", "true")
    assert server.wait("opens-all-ports", 120).state == "SUCCEEDED"
    pids = {process.pid for process in family(services)}
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in pids]
    assert len(listening) >= 4
    assert all("127.0.0.1" in address for address in listening)
    assert stat.S_IMODE((folder / "services.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(services.ray.log.stat().st_mode) == 0o600


def test_no_token_is_in_logs_state_or_process_lists(services: Services, folder: Path) -> None:
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    assert not any(token in " ".join(command_of(process)) for process in family(services))
    texts = [folder / "services.json", *(folder / "logs").iterdir()]
    assert not any(token in path.read_text(errors="replace") for path in texts)


def test_up_again_changes_nothing(services: Services, folder: Path) -> None:
    started = time.monotonic()
    assert start_services(ServiceSettings(folder, cpus=2, jobs_at_once=1)) == services
    assert time.monotonic() - started < 2


def test_a_wrong_or_missing_token_says_which_side(
    services: Services, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 8)
    with pytest.raises(ClusterError, match="refuses the token of this side: set RAY_AUTH_TOKEN_PATH"):
        server.jobs()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="asks for a token and there is none here: set RAY_AUTH_MODE=token"):
        server.jobs()


def test_what_is_not_there_and_what_is_no_job_server(services: Services) -> None:
    assert services.mlflow is not None
    with pytest.raises(ClusterError, match=r"no job server answers at http://127\.0\.0\.1:9; is the cluster up"):
        JobServer("127.0.0.1:9").jobs()
    with pytest.raises(ClusterError, match="answers, but is not a Ray job server"):
        JobServer(services.mlflow.url).versions()


def test_http_to_elsewhere_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = r"head\.example:8265 is beyond this machine, and no token is to be sent: .* or say --insecure"
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this account's own cluster")
    with pytest.raises(ValueError, match=said):
        JobServer("http://head.example:8265")
    JobServer("https://head.example:8265")
    JobServer("http://head.example:8265", allow_insecure=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    JobServer("http://head.example:8265")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=said):
        JobServer("http://head.example:8265")


def test_no_server_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INLAY_SERVICES", str(tmp_path))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="no job server is known: start one with `inlay up`"):
        JobServer()


def test_a_job_runs_and_its_log_stays(server: JobServer) -> None:
    submit(server, "greets", "echo $GREETING; echo to $MLFLOW_TRACKING_URI", team="blue")
    written = "".join(server.follow("greets"))
    assert re.fullmatch(r"hello\nto http://127\.0\.0\.1:\d+\n", written)
    assert server.logs("greets") == written
    job = server.job("greets")
    assert (job.state, job.tags, job.details) == ("SUCCEEDED", {"team": "blue"}, {"workspace": "/searches/greets"})
    assert job.ended is not None
    assert job.submitted is not None
    assert job.ended >= job.submitted
    assert [found.job_id for found in server.jobs({"team": "blue"})] == ["greets"]
    assert server.jobs({"team": "red"}) == []


def test_a_failed_job_says_its_exit_code_and_keeps_its_log(server: JobServer) -> None:
    submit(server, "fails", "echo why; exit 3")
    job = server.wait("fails", 120)
    assert (job.state, job.exit_code, job.message) == ("FAILED", 3, "Job entrypoint command failed with exit code 3")
    assert server.logs("fails") == "why\n"


def test_jobs_wait_for_a_slot_and_stopping_ends_the_work(server: JobServer) -> None:
    submit(server, "first", "echo begun; sleep 1234")
    deadline = time.monotonic() + 120
    while server.job("first").state != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # only now: of two that come at once, Ray may place either first
    submit(server, "second", "echo here")
    second = server.job("second")
    assert (second.state, second.message[:23]) == ("PENDING", "Job has not started yet")
    with pytest.raises(ValueError, match="the job `first` is RUNNING; stop it first: inlay stop first"):
        server.delete("first")
    with pytest.raises(ValueError, match="there is a job `first` already"):
        submit(server, "first", "true")
    started = time.monotonic()
    assert server.stop("first")
    assert server.wait("first", 30).state == "STOPPED"
    assert time.monotonic() - started < 10
    assert not running("1234")
    assert server.wait("second", 120).state == "SUCCEEDED"
    assert not server.stop("second")
    assert server.logs("first") == "begun\n"


def test_a_deleted_job_is_forgotten(server: JobServer) -> None:
    submit(server, "short", "true")
    server.wait("short", 120)
    server.delete("short")
    with pytest.raises(ValueError, match="has no job `short`; `inlay list` shows those it has"):
        server.job("short")


@pytest.mark.slow
def test_a_hundred_ended_jobs_are_listed_within_a_second(server: JobServer) -> None:
    for number in range(100):
        submit(server, f"many-{number}", "true", kind="many")
    for number in range(100):
        assert server.wait(f"many-{number}", 600).state == "SUCCEEDED"
    started = time.monotonic()
    assert len(server.jobs({"kind": "many"})) == 100
    assert time.monotonic() - started < 1


@pytest.mark.slow
def test_down_leaves_nothing_not_even_a_running_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_SERVICES", str(tmp_path))
    services = start_services(ServiceSettings(tmp_path, cpus=1))
    assert services.ray is not None
    server = JobServer(services.ray.url)
    submit(server, "runs-on", "sleep 4321")
    deadline = time.monotonic() + 120
    while not running("4321"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    before = family(services)
    started = time.monotonic()
    assert stop_services(tmp_path) == services
    assert time.monotonic() - started < 30
    assert [process for process in before if process.is_running()] == []
    assert find_services(tmp_path) == Services(None, None)
    assert stop_services(tmp_path) == Services(None, None)


@pytest.mark.slow
def test_jobs_submitted_right_after_up_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_SERVICES", str(tmp_path))
    services = start_services(ServiceSettings(tmp_path, cpus=1))
    try:
        assert services.ray is not None
        server = JobServer(services.ray.url)
        assert [node["inlay_job"] for node in server.nodes()] == [1]
        for name in ("one", "two"):
            submit(server, name, "sleep 3")
        states = []
        while not states or set(states[-1]) != {"SUCCEEDED"}:
            states.append(tuple(server.job(name).state for name in ("one", "two")))
            assert len(states) < 600
            time.sleep(0.1)
    finally:
        stop_services(tmp_path)
    assert ("RUNNING", "RUNNING") not in states
    assert {("RUNNING", "PENDING"), ("PENDING", "RUNNING")} & set(states)


def test_a_service_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    """MLflow asks a database that is away for two minutes, but gives up at once on one that it has no driver for."""
    settings = ServiceSettings(tmp_path, mlflow_store="mssql+pymssql://nobody:pass-word@127.0.0.1:9/none")
    with pytest.raises(ClusterError, match=rf"MLflow ended while starting; its log is {tmp_path}/logs/mlflow\.log"):
        start_services(settings)
    assert find_services(tmp_path) == Services(None, None)


@pytest.mark.slow
def test_what_runs_beside_a_service_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = ray_folder(tmp_path)
    place.rmdir()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    said = r"is not a folder of this account alone.*; MLflow runs at \S+: the same command goes on"
    with pytest.raises(ClusterError, match=said) as caught:
        start_services(ServiceSettings(tmp_path))
    found = find_services(tmp_path)
    assert found.ray is None
    assert found.mlflow is not None
    assert found.mlflow.url in str(caught.value)
    assert stop_services(tmp_path).mlflow == found.mlflow
    assert find_services(tmp_path) == Services(None, None)


def test_the_state_of_processes_that_are_gone_is_not_believed(tmp_path: Path) -> None:
    gone = {"process": {"pid": os.getpid(), "started": 1.0}, "url": "http://x", "log": "/x", "address": ""}
    (tmp_path / "services.json").write_text(json.dumps({"schema": 1, "ray": gone, "mlflow": None}))
    assert find_services(tmp_path) == Services(None, None)
    assert stop_services(tmp_path) == Services(None, None)


def test_a_folder_in_tmp_that_is_anothers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it first could read and replace the sockets of Ray."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long = tmp_path / ("x" * 100)
    fallback = tmp_path / f"inlay-{os.getuid()}"
    assert ray_folder(long) == fallback
    assert fallback.stat().st_mode & 0o777 == 0o700
    fallback.chmod(0o755)
    assert ray_folder(long).stat().st_mode & 0o777 == 0o700, "one of ours that is open to others is closed"
    said = rf"{fallback} is not a folder of this account alone.*--folder"
    fallback.rmdir()
    (tmp_path / "elsewhere").mkdir()
    fallback.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match=said):
        ray_folder(long)
    fallback.unlink()
    if os.getuid() == 0:
        fallback.mkdir()
        os.chown(fallback, 12345, 12345)
        with pytest.raises(ClusterError, match=said):
            ray_folder(long)
