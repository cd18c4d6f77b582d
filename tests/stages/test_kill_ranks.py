"""`kill -9` of the whole process group while two ranks recover a model, then the same command: the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from inlay.cluster.ray_private import list_of_commits

DRIVER = """
import json, sys
import inlay.nas.loop.training as training
from inlay.cluster import ClusterSettings, connect
from inlay.nas.job import Job
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import open_job_parent
from inlay.nas.loop.search import Search
from inlay.nas.pieces.weights import Library
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.workspace import Workspace

CHILD = (("attention:parent", "ffn:parent"), ("attention:no_op", "ffn:parent"), ("attention:parent", "ffn:no_op"))
training.CHECKPOINT_SECONDS = 0.5
job, place = Job.from_dict(json.loads(sys.argv[1])), Workspace(sys.argv[2])
parent = open_job_parent(job)
texts = store_texts(pack_texts(job, parent.tokenizer()), place)
with connect(ClusterSettings(workers=2)) as cluster:
    search = Search(job, place, parent, cluster, Reporter())
    record = training.recover_models(search, texts, Library({}), {"child": CHILD})["child"]
print(json.dumps(record.identity(), sort_keys=True))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_the_same_command_after_a_kill_ends_with_the_same_bits(
    sharding: str, tmp_path: Path, tiny_parent: Callable[..., Path], texts: tuple[Path, Path]
) -> None:
    job = {
        "parent": str(tiny_parent("llama")),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 512},
        },
        "space": {"attention": ["no_op"], "ffn": ["no_op"]},
        "recover": {"tokens": "60k", "learning_rate": 1e-3, "batch_size": 4, "workers": 2, "sharding": sharding},
        "budget": {"parameters": "0.9x"},
    }
    command = [sys.executable, "-c", DRIVER, json.dumps(job)]
    calm = finished(start([*command, str(tmp_path / "calm")]))
    killed = start([*command, str(tmp_path / "killed")])
    training = tmp_path / "killed" / "scratch" / "recover"
    deadline = time.monotonic() + 400
    while not any(list_of_commits(folder).is_file() for folder in training.glob("*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until_gone(killed.pid)
    assert not list((tmp_path / "killed" / "records" / "recover").glob("*.json"))
    assert finished(start([*command, str(tmp_path / "killed")])) == calm
    assert not list(training.iterdir())


def start(command: list[str]) -> subprocess.Popen[str]:
    """A process group of its own, as a shell gives to every command."""
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a command that succeeds prints."""
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return printed


def wait_until_gone(session: int) -> None:
    """Ray's workers, the ranks among them, end with the driver; its idle agents take longer."""
    deadline = time.monotonic() + 30
    while any("ray::" in name and "Agent" not in name for name in members(session)):
        assert time.monotonic() < deadline, members(session)
        time.sleep(0.1)


def members(session: int) -> list[str]:
    """The command lines of what lives in a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, ProcessLookupError):
            continue  # it is gone, which is the answer
    return found
