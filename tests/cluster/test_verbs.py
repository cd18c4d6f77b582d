"""The verbs of the cluster as a process: a new user's path, and one sentence for every mistake."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from mlflow import MlflowClient

from inlay.nas.client import Client
from inlay.nas.driver import VARIABLE, check_versions, submission
from inlay.nas.errors import JobFailedError, UserError
from inlay.nas.job import Job

COMMAND = [sys.executable, "-m", "inlay.nas.cli"]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


class Hook(BaseHTTPRequestHandler):
    """What jobs call when they end."""

    documents: list[Any]
    url: str

    def do_POST(self) -> None:
        self.documents.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def hook() -> Iterator[type[Hook]]:
    handler = type("Handler", (Hook,), {"documents": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{server.server_port}/ends"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, hook: type[Hook]) -> Iterator[Path]:
    """An account of its own, with services that run, and may call the hook."""
    home = tmp_path_factory.mktemp("home")
    done = inlay(home, "up", "--cpus", "2", "--jobs-at-once", "2", "--json", INLAY_ON_END_ALLOW=hook.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job_server"].startswith("http://127.0.0.1:")
    yield home
    done = inlay(home, "down", "--json")
    assert json.loads(done.stdout)["ended"] == ["ray", "mlflow"]


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "INLAY_"))}
    return kept | {"HOME": str(home), "LOGNAME": "ada", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def inlay(home: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return commands.run(*arguments, env=environment(home) | more, timeout=500)


@pytest.mark.slow
def test_a_new_users_path(home: Path, client: Client, job: Path, tmp_path: Path, hook: type[Hook]) -> None:
    values = yaml.safe_load(job.read_text()) | {"cluster": {"on_end": hook.url}}
    job.write_text(yaml.safe_dump(values))
    done = inlay(home, "submit", job, "--tag", "team=blue", "--wait")
    assert done.returncode == 0, done.stderr
    (first,) = done.stdout.split()
    assert first.startswith("stories-")
    assert (tmp_path / "stories.search" / "evaluation.json").exists()
    recorded = json.loads((tmp_path / "stories.search" / "run.json").read_text())["job"]
    evaluation = json.loads((tmp_path / "stories.search" / "evaluation.json").read_text())
    assert client.job(first).evaluation() == evaluation
    ended = hook.documents[-1]
    assert (ended["job_id"], ended["state"], ended["workspace"]) == (
        first,
        "SUCCEEDED",
        str(tmp_path / "stories.search"),
    )
    assert ended["figures"]["kl_nats"] == evaluation[evaluation["chosen"]]["kl_nats"]
    assert ended["mlflow_run_id"] == json.loads((tmp_path / "stories.search" / "run.json").read_text())["mlflow_run_id"]
    assert recorded["cluster"]["address"] is None, "evaluate and export would look for a cluster later"
    assert inlay(home, "export", tmp_path / "stories.search", "-o", tmp_path / "exported").returncode == 0
    status = json.loads(inlay(home, "status", first, "--json").stdout)
    assert (status["state"], status["tags"]) == ("SUCCEEDED", {"team": "blue"})
    assert status["workspace"] == str(tmp_path / "stories.search")
    assert re.fullmatch(
        r"http://127\.0\.0\.1:\d+/#/experiments/\d+/runs/[0-9a-f]{32}\?workflowType=machine_learning", status["mlflow"]
    )
    assert "evaluate" in inlay(home, "logs", first).stdout
    values["distill"]["tokens"] = "2M"
    job.write_text(yaml.safe_dump(values))
    second = inlay(home, "submit", job, "--id", "long", "-w", tmp_path / "long").stdout.strip()
    _wait_for_text(home, second, "distill")
    started = time.monotonic()
    done = inlay(home, "stop", second)
    assert time.monotonic() - started < 20
    assert "its workspace can be resumed" in done.stdout
    stopped = json.loads(inlay(home, "status", second, "--json").stdout)
    assert stopped["state"] == "STOPPED"
    assert [each["state"] for each in hook.documents if each["job_id"] == "long"] == ["STOPPED"]
    server, _, run_id = stopped["mlflow"].partition("?")[0].rpartition("/")
    assert MlflowClient(server.partition("/#")[0]).get_run(run_id).info.status == "KILLED"
    assert [entry["job_id"] for entry in json.loads(inlay(home, "list", "--json").stdout)][:2] == [second, first]
    assert [e["job_id"] for e in json.loads(inlay(home, "list", "--tag", "team=blue", "--json").stdout)] == [first]
    values["distill"]["tokens"] = 64
    job.write_text(yaml.safe_dump(values))
    done = inlay(home, "submit", job, "--id", "resumed", "-w", tmp_path / "long", "--wait")
    assert done.returncode == 0, done.stderr
    assert inlay(home, "delete", first).returncode == 0
    assert (tmp_path / "stories.search" / "evaluation.json").exists()


def test_a_failed_job_is_exit_code_4_and_says_why(home: Path, job: Path, hook: type[Hook]) -> None:
    values = yaml.safe_load(job.read_text()) | {"cluster": {"on_end": hook.url}}
    values["data"]["distill"]["path"] = "gone.txt"
    job.write_text(yaml.safe_dump(values))
    done = inlay(home, "submit", job, "--id", "fails", "--wait")
    assert done.returncode == 4
    assert "inlay: the job `fails` is FAILED: the node 127.0.0.1 does not have " in done.stderr
    (ended,) = (each for each in hook.documents if each["job_id"] == "fails")
    assert (ended["state"], ended["exit_code"]) == ("FAILED", 2)
    assert ended["reason"].startswith("the node 127.0.0.1 does not have ")
    log = inlay(home, "logs", "fails").stdout
    assert "gone.txt" in log
    assert inlay(home, "logs", "fails", "--tail", "1").stdout == log.splitlines(keepends=True)[-1]
    waited = inlay(home, "wait", "fails", "--timeout", "1min")
    assert (waited.returncode, waited.stderr) == (4, done.stderr.splitlines(keepends=True)[-1])
    assert "gone.txt" in inlay(home, "status", "fails").stdout
    assert "  owner      ada\n" in inlay(home, "status", "fails").stdout
    assert json.loads(inlay(home, "list", "--mine", "--state", "failed", "--json").stdout)[0]["owner"] == "ada"
    assert inlay(home, "list", "--mine", LOGNAME="bob").stdout == "no jobs\n"


@pytest.mark.slow
def test_a_job_is_shown_as_it_was_submitted_and_submitted_again(home: Path, job: Path, tmp_path: Path) -> None:
    text = f"# for the demo\n{job.read_text().replace('train.txt', 'gone.txt')}"
    job.write_text(text)
    place = tmp_path / "place"
    assert inlay(home, "submit", job, "--id", "shown", "-w", place, "--tag", "demo=two").returncode == 0
    job.unlink()
    assert inlay(home, "show", "shown", "--job").stdout == text
    shown = json.loads(inlay(home, "show", "shown", "--json").stdout)
    assert set(shown) == documented("`show`")
    assert (shown["owner"], shown["folder"], shown["workspace"]) == ("ada", str(tmp_path), str(place))
    assert f"  workspace  {place}\n" in inlay(home, "show", "shown").stdout
    done = inlay(home, "resubmit", "shown", LOGNAME="bob")
    assert done.returncode == 0, done.stderr
    assert re.match(
        "inlay: the job `shown` of ada is (PENDING|RUNNING) and has the same workspace, where one runs at a time: "
        "the other waits for its end; stop one \\(`inlay stop shown`\\), or name another workspace\n",
        done.stderr,
    )
    again = done.stdout.strip()
    assert re.fullmatch("shown-[0-9a-f]{8}", again)
    status = json.loads(inlay(home, "status", again, "--json").stdout)
    assert (status["owner"], status["workspace"], status["tags"]) == ("bob", str(place), {"demo": "two"})
    assert inlay(home, "show", again, "--job").stdout == text
    refused(inlay(home, "resubmit", "shown", "--id", again), 2, f"there is a job `{again}` already")
    said = [inlay(home, "wait", name).stderr.partition("is FAILED: ")[2] for name in ("shown", again)]
    assert all("gone.txt" in sentence for sentence in said), said


@pytest.fixture
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """From this process, as the same user."""
    monkeypatch.setenv("INLAY_SERVICES", str(home / ".local" / "state" / "inlay"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / ".ray" / "auth_token"))
    monkeypatch.setenv("LOGNAME", "ada")
    return Client()


def test_a_job_from_python(client: Client, job: Path, tmp_path: Path) -> None:
    loaded = Job.load(job)
    lost = loaded.data.distill.path[0].model_copy(update={"path": "gone.txt"})
    changed = loaded.data.distill.model_copy(update={"path": [lost]})
    broken = loaded.model_copy(update={"data": loaded.data.model_copy(update={"distill": changed})})
    handle = client.submit(broken, job_id="from-python", workspace=tmp_path / "place", tags={"team": "green"})
    assert handle.notes == ()
    status = handle.status()
    assert (status.job_id, status.owner, status.tags) == ("from-python", "ada", {"team": "green"})
    with pytest.raises(JobFailedError, match=r"the job `from-python` is FAILED: .*gone\.txt"):
        handle.wait()
    assert handle.stop().state == "FAILED"
    assert "gone.txt" in handle.logs(tail=1)
    with pytest.raises(UserError, match=r"the job `from-python` is FAILED, and there is no evaluation\.json in"):
        handle.evaluation()
    again = client.resubmit("from-python", new_id="from-python-2")
    assert client.job("from-python-2").status().details["workspace"] == str(tmp_path / "place")
    assert again.stop().state in ("STOPPED", "PENDING", "FAILED")
    with pytest.raises(UserError, match="has no job `nobody`"):
        client.job("nobody")
    with pytest.raises(UserError, match="there is a job `from-python` already"):
        client.submit(job, job_id="from-python")


@pytest.mark.slow
def test_all_jobs_of_a_tag_are_stopped_and_no_others(home: Path, job: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(job.read_text())
    values["distill"]["tokens"] = "20M"
    job.write_text(yaml.safe_dump(values))
    for name, night in (("n-one", "1"), ("n-two", "1"), ("n-three", "1"), ("n-other", "2")):
        words = ("--id", name, "-w", tmp_path / name, "--tag", f"night={night}")
        assert inlay(home, "submit", job, *words).returncode == 0
    deadline = time.monotonic() + 120
    while json.loads(inlay(home, "status", "n-one", "--json").stdout)["state"] != "RUNNING":
        assert time.monotonic() < deadline
    done = inlay(home, "stop", "--tag", "night=1")
    assert done.returncode == 0, done.stderr
    told = sorted(line.split()[0] for line in done.stdout.splitlines())
    assert told == ["n-one", "n-three", "n-two"]
    assert "n-one is STOPPED; its workspace can be resumed: " in done.stdout
    states = {job["job_id"]: job["state"] for job in json.loads(inlay(home, "list", "--tag", "night", "--json").stdout)}
    assert states["n-other"] in ("PENDING", "RUNNING")
    for name in told:  # one that waited is started when its turn comes, and ended at once
        assert inlay(home, "wait", name).stderr.startswith(f"inlay: the job `{name}` is STOPPED")
    (other,) = json.loads(inlay(home, "stop", "--tag", "night=2", "--json").stdout)
    assert other["job_id"] == "n-other"
    none = inlay(home, "stop", "--tag", "night=1")
    assert (none.returncode, none.stdout) == (0, "")
    assert none.stderr == "inlay: no job with night=1 runs or waits\n"


@pytest.mark.parametrize("name", ["inlay", "ray", "python"])
def test_a_node_of_another_version_refuses_the_job(name: str) -> None:
    here = {"inlay": version("inlay"), "ray": version("ray"), "python": ".".join(map(str, sys.version_info[:2]))}
    check_versions(here)
    said = rf"the job was submitted with {name} 9\.9, this node has {re.escape(here[name])}; use the same"
    with pytest.raises(UserError, match=said):
        check_versions(here | {name: "9.9"})


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_alone(home: Path, job: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "submit", str(job), "--id", "goes-on", "--wait"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "goes-on\n"
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "inlay: the job goes on; `inlay stop goes-on` stops it" in errors
    assert "Traceback" not in errors
    assert json.loads(inlay(home, "status", "goes-on", "--json").stdout)["state"] in ("PENDING", "RUNNING", "SUCCEEDED")
    inlay(home, "stop", "goes-on")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("status", "nobody"), 2, "has no job `nobody`; `inlay list` shows those it has"),
        (("stop", "nobody"), 2, "has no job `nobody`"),
        (("logs", "nobody"), 2, "has no job `nobody`"),
        (("delete", "nobody"), 2, "has no job `nobody`"),
        (("status", "../etc"), 2, "'../etc' is not the id of a job; `inlay list` shows those there are"),
        (("delete", "a/../../b"), 2, "is not the id of a job"),
        (("logs", "a\nb"), 2, r"'a\nb' is not the id of a job"),
        (("stop", "a\x1b[31mb"), 2, r"'a\x1b[31mb' is not the id of a job"),
        (("stop",), 2, "name one job by its ID, or several by --tag NAME=VALUE; `inlay list` shows both"),
        (("stop", "nobody", "--tag", "a=b"), 2, "name one job by its ID, or several by --tag"),
        (("stop", "--tag", "night"), 2, "'night' is not a tag: name=value"),
        (("show", "nobody"), 2, "has no job `nobody`"),
        (("resubmit", "nobody"), 2, "has no job `nobody`"),
        (("wait", "nobody"), 2, "has no job `nobody`"),
        (("wait", "nobody", "--timeout", "soon"), 2, "--timeout: 'soon' is not a number; write a time such as 60s"),
        (("wait", "nobody", "--timeout", "0s"), 2, "--timeout: '0s' is not above 0"),
        (
            ("logs", "nobody", "--tail", "-1"),
            2,
            "invalid value for '--tail': Input should be greater than or equal to 0",
        ),
        (("list", "--tag", "=blue"), 2, "'=blue' is not a tag: name=value"),
        (("list", "--tag", "team", "--tag", "team=a"), 2, "the tag `team` is given twice"),
        (("list", "--state", "done"), 2, "'done' is not one of 'pending', 'running', 'succeeded', 'failed', 'stopped'"),
        (("list", "--limit", "0"), 2, "invalid value for '--limit': Input should be greater than or equal to 1"),
        (("list", "--tag", "team=a\nb"), 2, "has control characters"),
        (("list", "--address", "ray://head:10001"), 2, "is not the address of a job server"),
        (("list", "--address", "http://10.255.255.1:8265"), 2, "is beyond this machine, and no token is to be sent"),
        (("list", "--address", "127.0.0.1:9"), 1, "no job server answers at http://127.0.0.1:9; is the cluster up?"),
        (("submit", "nowhere.yaml"), 2, "there is no job file nowhere.yaml"),
    ],
)
def test_mistakes_are_one_sentence(home: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    token = {"RAY_AUTH_TOKEN_PATH": "/nowhere"} if "10.255" in arguments[-1] else {}
    refused(inlay(home, *arguments, **token), code, text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"#" * 500_001, "is larger than 500000 bytes; a job file is a page"),
        (b"a: &a [x, x]\n" + b"b: &b [*a, *a, *a]\n" * 1 + b"c: [" + b"*b, " * 9000 + b"*b]", "more than 10000 values"),
        (b"a: &a [*a]", "an alias that contains itself"),
        (b"parent: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        (b"a: " + b"[" * 3000, "nested too deeply"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
    ids=["large", "bomb", "cycle", "tag", "deep", "bytes"],
)
def test_a_job_file_from_anybody_is_refused_in_one_sentence(
    home: Path, tmp_path: Path, content: bytes, text: str
) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    refused(inlay(home, "submit", tmp_path / "job.yaml"), 2, text)


def refused(done: subprocess.CompletedProcess[str], code: int, text: str) -> None:
    """One sentence on stderr, nothing on stdout, this exit code."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("inlay: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_ids_and_tags_are_refused_before_anything_is_sent(home: Path, job: Path) -> None:
    for arguments, text in ((("--id", "A b"), "is not a job id"), (("--tag", "x"), "is not a tag")):
        done = inlay(home, "submit", job, *arguments)
        assert done.returncode == 2
        assert text in done.stderr


def test_a_wrong_or_missing_token_says_which_side_and_how_to_set_it(home: Path, tmp_path: Path) -> None:
    refused(inlay(home, "list", RAY_AUTH_TOKEN="0" * 64), 1, "refuses the token of this side: set RAY_AUTH_TOKEN_PATH")
    missing = "asks for a token and there is none here: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file"
    refused(inlay(home, "list", RAY_AUTH_MODE="disabled"), 1, missing)
    refused(inlay(home, "list", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none")), 1, missing)


def test_what_is_no_ray_job_server_is_told(home: Path) -> None:
    state = json.loads((home / ".local" / "state" / "inlay" / "services.json").read_text())
    text = "answers, but is not a Ray job server"
    refused(inlay(home, "list", "--address", state["mlflow"]["url"]), 1, text)


def test_a_cluster_of_another_ray_is_refused(home: Path, job: Path) -> None:
    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "4", "ray_version": "1.13.0", "ray_commit": "0"}')

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        done = inlay(home, "submit", job, "--address", address)
        server.shutdown()
    refused(done, 2, f"the cluster at http://{address} has Ray 1.13.0, this side has {version('ray')}; use the same")


def test_a_node_with_another_inlay_ends_the_job_with_one_sentence(home: Path, job: Path, tmp_path: Path) -> None:
    order = submission(Job.load(job), str(tmp_path / "w"), "old", {})
    values = json.loads(zlib.decompress(base64.b64decode(order.environment[VARIABLE])))
    values["versions"]["inlay"] = "0.0.1"
    packed = base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()
    done = subprocess.run(
        [sys.executable, "-m", "inlay.nas.driver"],
        env=environment(home) | {VARIABLE: packed},
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"the job was submitted with inlay 0.0.1, this node has {version('inlay')}; use the same"
    refused(done, 2, said)


def test_a_workspace_that_workers_cannot_write(home: Path, job: Path) -> None:
    done = inlay(home, "submit", job, "--id", "no-place", "-w", "/proc/nowhere/search", "--wait")
    assert done.returncode == 4
    said = "the node of the job cannot write the workspace /proc/nowhere/search: "
    assert f"inlay: the job `no-place` is FAILED: {said}" in done.stderr
    assert said in json.loads(inlay(home, "status", "no-place", "--json").stdout)["message"]
    assert said in inlay(home, "logs", "no-place").stdout
    assert "Traceback" not in inlay(home, "logs", "no-place").stdout


@pytest.mark.slow
def test_a_second_job_on_a_workspace_is_told_whose_it_is(home: Path, job: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(job.read_text())
    values["distill"]["tokens"] = "20M"
    job.write_text(yaml.safe_dump(values))
    assert inlay(home, "submit", job, "--id", "holder", "-w", tmp_path / "one").returncode == 0
    deadline = time.monotonic() + 120
    while not (tmp_path / "one" / "workspace.json").exists():
        assert time.monotonic() < deadline, inlay(home, "logs", "holder").stdout
        time.sleep(0.5)
    refused(inlay(home, "delete", "holder"), 2, "the job `holder` is RUNNING; stop it first: inlay stop holder")
    done = inlay(home, "submit", job, "--id", "second", "-w", f"{tmp_path}/./one/", "--wait")
    assert done.returncode == 4
    assert done.stderr.startswith("inlay: the job `holder` of ada is RUNNING and has the same workspace, ")
    assert re.search(
        r"the job `second` is FAILED: workspace: .* is in use by the job holder \(process \d+ on", done.stderr
    )
    started = time.monotonic()
    assert "holder is STOPPED; its workspace can be resumed" in inlay(home, "stop", "holder").stdout
    assert time.monotonic() - started < 10
    assert inlay(home, "logs", "holder").stdout.endswith(
        "inlay: stopped; what is finished is kept, the same job goes on from there\n"
    )


def documented(verb: str) -> set[str]:
    """The fields that docs/cli.md names for a verb's JSON."""
    (fields,) = re.findall(rf"^\| {re.escape(verb)} \| (.+) \|$", DOCUMENT, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", fields))


@pytest.mark.slow
def test_the_fields_of_json_are_those_of_the_document(home: Path, job: Path, tmp_path: Path) -> None:
    def keys(*arguments: str | Path) -> set[str]:
        done = inlay(home, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        return set(value[0] if isinstance(value, list) else value)

    values = yaml.safe_load(job.read_text())
    values["distill"]["tokens"] = "20M"
    job.write_text(yaml.safe_dump(values))
    of_job = documented("`submit`, `resubmit`, `wait`, `stop`, each job of `list`")
    assert keys("up") == documented("`up`")
    assert keys("submit", job, "--id", "fields", "-w", tmp_path / "w") == of_job
    _wait_for_text(home, "fields", "started")
    assert keys("status", "fields") == of_job | documented("`status`")
    progress = json.loads(inlay(home, "status", "fields", "--json").stdout)["progress"]
    assert set(progress) == documented("`progress` of `status`")
    assert keys("list") == of_job
    assert keys("logs", "fields") == documented("`logs`")
    assert keys("stop", "fields") == of_job
    assert keys("delete", "fields") == documented("`delete`")
    assert keys("down", "--folder", tmp_path / "none") == documented("`down`")


def test_no_services_is_one_sentence(tmp_path: Path) -> None:
    done = inlay(tmp_path, "list")
    assert done.returncode == 2
    assert "no job server is known: start one with `inlay up`" in done.stderr
    assert inlay(tmp_path, "down").stdout.startswith("nothing runs in ")


def _wait_for_text(home: Path, job_id: str, text: str) -> None:
    deadline = time.monotonic() + 300
    while text not in inlay(home, "logs", job_id).stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
