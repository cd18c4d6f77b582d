"""What the verbs make of a job server's answers, odd, broken and late ones among them; the server speaks plain HTTP."""

from __future__ import annotations

import base64
import json
import os
import pwd
import socketserver
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.cluster.account import account_name
from inlay.cluster.errors import ClusterError
from inlay.cluster.http import HttpError, is_healthy, request_json
from inlay.cluster.jobs import JobServer
from inlay.nas.cli.app import main
from inlay.nas.errors import InlayError, UserError

JOB: dict[str, Any] = {
    "type": "SUBMISSION",
    "submission_id": "first",
    "status": "SUCCEEDED",
    "message": "",
    "metadata": {"tag.team": "blue", "workspace": "/searches/first.search"},
    "start_time": 1_790_000_000_000,
}


class Answers(socketserver.ThreadingTCPServer):
    """Answers each path with what stands there: bytes as they are, an int as that status, all else as JSON.

    A list is one answer after the other, the last one for ever.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, path: str) -> bytes:
        self.asked.append(path)
        line = self.answers.get(path, [404])
        answer = line.pop(0) if len(line) > 1 else line[0]
        if isinstance(answer, bytes):
            return answer
        status, body = (answer, b"") if isinstance(answer, int) else (200, json.dumps(answer).encode())
        return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


class _Talk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Answers)
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.wfile.write(self.server.take(path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    with Answers() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.url)
        server.answers = {
            "/api/version": [{"ray_version": "2.60.0"}],
            "/api/jobs/": [[JOB]],
            "/api/jobs/first": [JOB],
            "/api/jobs/first/logs": [{"logs": "one\n"}],
        }
        yield server
        server.shutdown()


def job_of(number: int) -> dict[str, Any]:
    """One of a hundred jobs, each a second younger than the one before."""
    metadata = {"owner": ("ada", "bob")[number % 2], "tag.team": ("blue", "red", "green")[number % 3]}
    metadata |= {"tag.night": ""} if number % 10 == 0 else {}
    state = ("SUCCEEDED", "FAILED", "RUNNING", "PENDING")[number % 4]
    own = {"submission_id": f"job-{number}", "status": state, "start_time": 1_790_000_000_000 + 1000 * number}
    return {**JOB, **own, "metadata": metadata}


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([], range(100)),
        (["--state", "failed"], range(1, 100, 4)),
        (["--tag", "team=red"], range(1, 100, 3)),
        (["--tag", "night"], range(0, 100, 10)),
        (["--tag", "night", "--tag", "team=blue"], range(0, 100, 30)),
        (["--limit", "3"], range(97, 100)),
        (["--mine"], range(0, 100, 2)),
        (["--mine", "--state", "RUNNING", "--limit", "2"], (94, 98)),
        (["--tag", "team=yellow"], ()),
    ],
)
def test_a_hundred_jobs_are_chosen_from_by_one_request(
    server: Answers,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    numbers: Iterable[int],
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    server.answers["/api/jobs/"] = [[job_of(number) for number in range(100)]]
    assert main(["list", *words, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [job["job_id"] for job in listed] == [f"job-{number}" for number in sorted(numbers, reverse=True)]
    assert all(job["owner"] == ("ada", "bob")[int(job["job_id"][4:]) % 2] for job in listed)
    assert server.asked == ["/api/jobs/"]


def test_an_account_without_a_name_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert account_name() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: 2**30)
    assert account_name() == str(2**30)
    monkeypatch.setenv("LOGNAME", "\x1b[31mada\n")
    assert account_name() == "[31mada"


@pytest.mark.parametrize("value", ["[/x]", "[bold]loud[/bold]", "[link=http://x]y[/link]", "\\[", "[red"])
def test_a_tag_is_shown_as_it_is(server: Answers, capsys: pytest.CaptureFixture[str], value: str) -> None:
    server.answers["/api/jobs/"] = [[{**JOB, "metadata": {"tag.team": value}}]]
    assert main(["list"]) == 0
    assert f"team={value}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "code"), [("SUCCEEDED", 0), ("FAILED", 4), ("STOPPED", 4)], ids=["succeeded", "failed", "stopped"]
)
def test_following_a_job_that_did_not_succeed_says_so(
    server: Answers, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    server.answers["/api/jobs/first"] = [{**JOB, "status": "RUNNING"}, {**JOB, "status": state}]
    server.answers["/api/jobs/first/logs"] = [{"logs": "one\n"}, {"logs": "one\ninlay: no room\n"}]
    assert main(["logs", "-f", "first"]) == code
    told = capsys.readouterr()
    assert told.out == "one\ninlay: no room\n"
    if state == "FAILED":
        assert told.err == "inlay: the job `first` is FAILED: no room\n"


@pytest.mark.parametrize(("tail", "shown"), [("0", ""), ("1", "two\n"), ("2", "one\ntwo\n"), ("9", "one\ntwo\n")])
def test_the_tail_of_a_log_and_what_comes_after_it(
    server: Answers, capsys: pytest.CaptureFixture[str], tail: str, shown: str
) -> None:
    log = "one\ntwo\n"
    server.answers["/api/jobs/first/logs"] = [{"logs": log}]
    assert main(["logs", "first", "--tail", tail]) == 0
    assert capsys.readouterr().out == shown
    assert main(["logs", "first", "--tail", tail, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"job_id": "first", "log": shown}
    server.answers["/api/jobs/first"] = [{**JOB, "status": "RUNNING"}, JOB]
    server.answers["/api/jobs/first/logs"] = [{"logs": log}, {"logs": log}, {"logs": f"{log}three\n"}]
    assert main(["logs", "-f", "first", "--tail", tail]) == 0
    assert capsys.readouterr().out == f"{shown}three\n"


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 4), ("STOPPED", 4)])
def test_waiting_ends_with_the_job(server: Answers, capsys: pytest.CaptureFixture[str], state: str, code: int) -> None:
    server.answers["/api/jobs/first"] = [{**JOB, "status": "RUNNING"}, {**JOB, "status": state}]
    server.answers["/api/jobs/first/logs"] = [{"logs": "inlay: no room\n"}]
    assert main(["wait", "first", "--json"]) == code
    told = capsys.readouterr()
    assert json.loads(told.out)["state"] == state
    reason = ": no room" if state == "FAILED" else ""
    assert told.err == ("" if code == 0 else f"inlay: the job `first` is {state}{reason}\n")


def test_waiting_no_longer_than_asked(server: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/api/jobs/first"] = [{**JOB, "status": "RUNNING"}]
    assert main(["wait", "first", "--timeout", "10ms"]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "inlay: the job `first` is still RUNNING after 10ms; it goes on\n")


def test_a_handle_reads_what_its_job_found(server: Answers, tmp_path: Path) -> None:
    details = {"workspace": str(tmp_path), "owner": "ada", "tag.team": "blue"}
    ended = {**JOB, "metadata": details}
    server.answers["/api/jobs/first"] = [ended, {**ended, "status": "RUNNING"}, ended]
    handle = inlay.Client(server.url).job("first")
    with pytest.raises(UserError, match=r"`first` is RUNNING, and there is no evaluation\.json in .* wait for it"):
        handle.evaluation()
    (tmp_path / "evaluation.json").write_text('{"child": {"kl": 0.5}}')
    assert handle.wait().state == "SUCCEEDED"
    assert handle.evaluation() == {"child": {"kl": 0.5}}
    assert (handle.status().owner, handle.status().tags) == ("ada", {"team": "blue"})
    assert (handle.logs(), handle.logs(tail=0)) == ("one\n", "")
    server.answers["/api/jobs/first"] = [{**JOB, "metadata": {}}]
    with pytest.raises(UserError, match="the job `first` names no workspace: something else than inlay submitted it"):
        handle.evaluation()


def test_a_handle_waits_no_longer_than_asked(server: Answers) -> None:
    server.answers["/api/jobs/first"] = [{**JOB, "status": "RUNNING"}]
    with pytest.raises(InlayError, match=r"the job `first` is still RUNNING after 0\.01 s; it goes on"):
        inlay.Client().job("first").wait(0.01)


PACKED = base64.b64encode(zlib.compress(b'{"job": "seed: 1"}')).decode()


@pytest.mark.parametrize(
    "environment", [{}, {"INLAY_SUBMISSION": "<redacted>"}, {"INLAY_SUBMISSION": "AAAA"}, {"INLAY_SUBMISSION": PACKED}]
)
@pytest.mark.parametrize("verb", ["show", "resubmit"])
def test_what_inlay_did_not_submit_has_no_job_file(
    server: Answers, capsys: pytest.CaptureFixture[str], verb: str, environment: dict[str, str]
) -> None:
    server.answers["/api/jobs/first"] = [{**JOB, "runtime_env": {"env_vars": environment}}]
    assert main([verb, "first"]) == 2
    said = "inlay: the job `first` has no job file with it: something else than inlay submitted it\n"
    assert capsys.readouterr() == ("", said)


BROKEN = [
    b"garbage\r\n\r\n",
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize("answer", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_answer_is_one_sentence(server: Answers, capsys: pytest.CaptureFixture[str], answer: bytes) -> None:
    server.answers["/api/jobs/"] = [answer]
    with pytest.raises(HttpError):
        request_json("GET", f"{server.url}/api/jobs/")
    assert not is_healthy(f"{server.url}/api/jobs/") or answer in BROKEN[2:5], "nothing is raised"
    assert main(["list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inlay: ")
    assert "unexpected error" not in line


@pytest.mark.parametrize("value", [[3], {"jobs": []}, [{"type": "SUBMISSION"}], "x", None])
def test_an_answer_of_another_form_is_one_sentence(
    server: Answers, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    server.answers["/api/jobs/"] = [value]
    assert main(["list"]) == 1
    assert capsys.readouterr().err == f"inlay: {server.url} answers, but is not a Ray job server\n"


def test_a_server_that_fails_for_a_while_does_not_end_the_watching(server: Answers) -> None:
    running = {**JOB, "status": "RUNNING"}
    server.answers["/api/jobs/first"] = [running, 503, b"", running, JOB]
    server.answers["/api/jobs/first/logs"] = [{"logs": "one\n"}, b"garbage\r\n\r\n", 502, {"logs": "one\ntwo\n"}]
    assert "".join(JobServer().follow("first")) == "one\ntwo\n"
    server.answers["/api/jobs/first"] = [running, 503, JOB]
    assert JobServer().wait("first", 60).state == "SUCCEEDED"


def test_a_server_that_never_answered_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answers() as gone:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", gone.url)
    with pytest.raises(ClusterError, match="no job server answers at"):
        JobServer().wait("first")


def test_what_changes_something_is_asked_once(server: Answers) -> None:
    jobs = JobServer()
    jobs.versions()
    server.answers["/api/jobs/first/stop"] = [503, {"stopped": True}]
    with pytest.raises(ClusterError, match="failed \\(503\\)"):
        jobs.stop("first")


def test_rays_own_jobs_can_be_read_and_are_not_taken_for_searches(
    server: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray job submit` makes ids of its own form, `raysubmit_` and letters of both cases."""
    name = "raysubmit_Xy7ZqL3kTn4vB8aC"
    theirs = {**JOB, "submission_id": name, "metadata": {}}
    server.answers |= {
        "/api/jobs/": [[theirs]],
        f"/api/jobs/{name}": [theirs],
        f"/api/jobs/{name}/logs": [{"logs": "theirs\n"}],
        f"/api/jobs/{name}/stop": [{"stopped": False}],
    }
    assert main(["list"]) == 0
    assert name in capsys.readouterr().out
    assert main(["status", name]) == 0
    assert main(["logs", name]) == 0
    assert capsys.readouterr().out.endswith("theirs\n")
    assert main(["stop", name]) == 0


def test_status_asks_no_server_that_another_user_named(server: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    with Answers() as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        details = {"tracking": stranger.url, "experiment": "x", "workspace": "/w"}
        server.answers["/api/jobs/first"] = [{**JOB, "metadata": details}]
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["status", "first"]) == 0
        assert stranger.asked == []
        monkeypatch.setenv("MLFLOW_TRACKING_URI", stranger.url)
        assert main(["status", "first"]) == 0
        assert len(stranger.asked) == 1
        stranger.shutdown()
