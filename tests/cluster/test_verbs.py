"""The verbs of the cluster as a process: a new user's path, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from inlay.nas.cli.submitted import check_versions
from inlay.nas.errors import UserError

COMMAND = [sys.executable, "-m", "inlay.nas.cli"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An account of its own, with services that run."""
    home = tmp_path_factory.mktemp("home")
    done = inlay(home, "up", "--cpus", "2", "--jobs-at-once", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job_server"].startswith("http://127.0.0.1:")
    yield home
    done = inlay(home, "down", "--json")
    assert json.loads(done.stdout)["ended"] == ["ray", "mlflow"]


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "INLAY_"))}
    return kept | {"HOME": str(home), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def inlay(home: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(home) | more,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def job(tmp_path: Path, tiny_parent: Callable[..., Path]) -> Path:
    """A right job on a tiny parent, that takes seconds."""
    for name, count in (("train", 60), ("held_out", 40)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} story {n}\n<|endoftext|>\n" for n in range(count)))
    values = {
        "parent": str(tiny_parent("llama")),
        "data": {
            "distill": {"path": "train.txt", "sequence_length": 16},
            "validate": {"path": "held_out.txt", "tokens": 256},
        },
        "space": {"attention": [{"kv_heads": 1}, "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
        "calibrate": {"tokens": 64},
        "distill": {"tokens": 64, "batch_size": 2},
        "recover": {"tokens": 64, "batch_size": 2},
        "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.95x"},
        "tracking": {"experiment": "verbs"},
    }
    path = tmp_path / "stories.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_a_new_users_path(home: Path, job: Path, tmp_path: Path) -> None:
    done = inlay(home, "submit", job, "--tag", "team=blue", "--wait")
    assert done.returncode == 0, done.stderr
    (first,) = done.stdout.split()
    assert first.startswith("stories-")
    assert (tmp_path / "stories.search" / "evaluation.json").exists()
    status = json.loads(inlay(home, "status", first, "--json").stdout)
    assert (status["state"], status["tags"]) == ("SUCCEEDED", {"team": "blue"})
    assert status["workspace"] == str(tmp_path / "stories.search")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#/experiments/\d+/runs/[0-9a-f]{32}", status["mlflow"])
    assert "evaluate" in inlay(home, "logs", first).stdout
    values = yaml.safe_load(job.read_text())
    values["distill"]["tokens"] = "2M"
    job.write_text(yaml.safe_dump(values))
    second = inlay(home, "submit", job, "--id", "long", "-w", tmp_path / "long").stdout.strip()
    _wait_for_text(home, second, "distill")
    started = time.monotonic()
    done = inlay(home, "stop", second)
    assert time.monotonic() - started < 20
    assert "its workspace can be resumed" in done.stdout
    assert json.loads(inlay(home, "status", second, "--json").stdout)["state"] == "STOPPED"
    assert [entry["job_id"] for entry in json.loads(inlay(home, "list", "--json").stdout)][:2] == [second, first]
    assert [e["job_id"] for e in json.loads(inlay(home, "list", "--tag", "team=blue", "--json").stdout)] == [first]
    values["distill"]["tokens"] = 64
    job.write_text(yaml.safe_dump(values))
    done = inlay(home, "submit", job, "--id", "resumed", "-w", tmp_path / "long", "--wait")
    assert done.returncode == 0, done.stderr
    assert inlay(home, "delete", first).returncode == 0
    assert (tmp_path / "stories.search" / "evaluation.json").exists()


def test_a_failed_job_is_exit_code_4_and_says_why(home: Path, job: Path) -> None:
    values = yaml.safe_load(job.read_text())
    values["data"]["distill"]["path"] = "gone.txt"
    job.write_text(yaml.safe_dump(values))
    done = inlay(home, "submit", job, "--id", "fails", "--wait")
    assert done.returncode == 4
    assert "inlay: the job `fails` is FAILED: Job entrypoint command failed with exit code 2" in done.stderr
    assert "gone.txt" in inlay(home, "logs", "fails").stdout
    assert "gone.txt" in inlay(home, "status", "fails").stdout


@pytest.mark.parametrize("name", ["inlay", "ray", "python"])
def test_a_node_of_another_version_refuses_the_job(name: str) -> None:
    here = {"inlay": version("inlay"), "ray": version("ray"), "python": ".".join(map(str, sys.version_info[:2]))}
    check_versions(here)
    said = rf"the job was submitted with {name} 9\.9, this node has {re.escape(here[name])}; use the same"
    with pytest.raises(UserError, match=said):
        check_versions(here | {name: "9.9"})


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
        (("status", "../etc"), 2, "is not a job id"),
        (("list", "--tag", "team"), 2, "is not a tag"),
        (("list", "--address", "ray://head:10001"), 2, "is not the address of a job server"),
        (("list", "--address", "127.0.0.1:9"), 1, "no job server answers at http://127.0.0.1:9"),
        (("submit", "nowhere.yaml"), 2, "there is no job file nowhere.yaml"),
    ],
)
def test_mistakes_are_one_sentence(home: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = inlay(home, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("inlay: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_ids_and_tags_are_refused_before_anything_is_sent(home: Path, job: Path) -> None:
    for arguments, text in ((("--id", "A b"), "is not a job id"), (("--tag", "x"), "is not a tag")):
        done = inlay(home, "submit", job, *arguments)
        assert done.returncode == 2
        assert text in done.stderr


def test_without_a_token_it_says_which_side(home: Path) -> None:
    done = inlay(home, "list", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 1
    assert "refuses the token of this side: set RAY_AUTH_TOKEN_PATH" in done.stderr


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
