"""A job's `cluster.on_end`: told how it ended, and of nothing that is secret; its end is the job's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml

from inlay.cluster.on_end import VARIABLE
from inlay.nas.errors import InfeasibleError, UserError
from inlay.nas.job import Job
from inlay.nas.stages.on_end import told_on_end
from inlay.nas.stages.run import RunResult

VALUES = {
    "parent": "inlay:pystdlib",
    "data": {"distill": {"path": "inlay:pystdlib/train"}, "validate": {"path": "inlay:pystdlib/held_out"}},
    "space": {"ffn": ["no_op"]},
    "budget": {"parameters": "0.9x"},
}


class Receiver(BaseHTTPRequestHandler):
    """Notes the documents that it is sent."""

    heard: list[Any]

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"thanks")

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Any]]]:
    """An allowed URL, and what it is sent."""
    handler = type("Handler", (Receiver,), {"heard": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/hook"
    monkeypatch.setenv(VARIABLE, url)
    yield url, handler.heard
    server.shutdown()
    server.server_close()


def job_for(url: str | None) -> Job:
    return Job.from_dict(VALUES | {"cluster": {"on_end": url}})


def fails(error: BaseException) -> Any:
    def work() -> RunResult:
        raise error

    return work


def test_a_finished_job_is_told_with_its_figures(heard: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, documents = heard
    uniform = {"kl_nats": 0.2, "runtime_ratio": 0.6, "weights_bytes": 100, "parameters": 50, "architecture": []}
    result = RunResult(str(tmp_path), {"chosen": "uniform", "uniform": uniform}, {"mlflow_run_id": "ab"}, False)
    assert told_on_end(job_for(url), tmp_path, "night-1", pytest.fail, lambda: result) is result
    figures = {name: value for name, value in uniform.items() if name != "architecture"}
    assert documents == [
        {
            "schema": 1,
            "job_id": "night-1",
            "workspace": str(tmp_path),
            "state": "SUCCEEDED",
            "exit_code": 0,
            "chosen": "uniform",
            "figures": figures,
            "mlflow_run_id": "ab",
        }
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InfeasibleError("the least is 0.4x"), ("FAILED", 3, "the least is 0.4x")),
        (ZeroDivisionError("of the text itself"), ("FAILED", 1, "unexpected error (ZeroDivisionError)")),
        (KeyboardInterrupt(), ("STOPPED", 130, "it was stopped")),
        (SystemExit(143), ("STOPPED", 143, "it was stopped")),
    ],
)
def test_how_it_ended_is_told_and_stays(
    error: BaseException, told: tuple[str, int, str], heard: tuple[str, list[Any]], tmp_path: Path
) -> None:
    url, documents = heard
    with pytest.raises(type(error)) as caught:
        told_on_end(job_for(url), tmp_path, None, pytest.fail, fails(error))
    assert caught.value is error
    assert [(each["state"], each["exit_code"], each["reason"]) for each in documents] == [told]


def test_secrets_of_this_process_are_not_told(
    heard: tuple[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, documents = heard
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    with pytest.raises(UserError):
        told_on_end(
            job_for(url), tmp_path, None, pytest.fail, fails(UserError("postgresql://me:pa/ss@host with correct-horse"))
        )
    assert documents[0]["reason"] == "postgresql://***@host with ***"


def test_what_is_not_allowed_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "https://ci.example")
    with pytest.raises(UserError) as caught:
        told_on_end(job_for("http://127.0.0.1:9/hook"), tmp_path, None, pytest.fail, lambda: pytest.fail("it ran"))
    assert str(caught.value) == (
        "cluster.on_end: http://127.0.0.1:9/hook is not called from here; whoever runs this machine or cluster can "
        "allow it by INLAY_ON_END_ALLOW in its environment, or leave it out"
    )


def test_a_failed_call_changes_nothing_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")
    said: list[str] = []
    result = RunResult(str(tmp_path), {}, {}, False)
    assert told_on_end(job_for("http://127.0.0.1:9/hook"), tmp_path, None, said.append, lambda: result) is result
    reason = "nothing answers at http://127.0.0.1:9/hook (Connection refused)"
    assert said == [f"cluster.on_end was not told that the job ended: {reason}"]


def test_a_job_without_it_calls_nobody(heard: tuple[str, list[Any]], tmp_path: Path) -> None:
    result = RunResult(str(tmp_path), {}, {}, False)
    assert told_on_end(job_for(None), tmp_path, None, pytest.fail, lambda: result) is result
    assert heard[1] == []


def test_the_command_tells_it(heard: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, documents = heard
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(VALUES | {"cluster": {"on_end": url}}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/workspace.json").write_text(
        json.dumps({"schema": 1, "parent_digest": "0" * 64, "parent": "./other"})
    )
    ended = commands.run("run", "job.yaml", "-w", "other", cwd=tmp_path)
    assert ended.returncode == 2
    (document,) = documents
    assert (document["state"], document["exit_code"], document["workspace"]) == ("FAILED", 2, "other")
    assert document["reason"] in " ".join(ended.stderr.split())
