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
import yaml

from inlay.nas.workspace import Workspace

COMMAND = """
import sys
import inlay.nas.stages.recover as recover
from inlay.nas.cli import main

recover.CHECKPOINT_SECONDS = 1.0
sys.argv[0] = "inlay"
main()
"""


def start(folder: Path, place: str) -> subprocess.Popen[str]:
    """`inlay run`, with a state saved every second, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", "job.yaml", "-w", place],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_same_command_after_a_kill_ends_with_the_same_bits(
    tmp_path: Path, tiny_parent: Callable[..., Path], texts: tuple[Path, Path]
) -> None:
    values = {
        "parent": str(tiny_parent("llama")),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 512},
        },
        "space": {"attention": ["no_op"], "ffn": ["no_op"]},
        "calibrate": {"tokens": 256},
        "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.9x"},
        "recover": {"tokens": "40k", "learning_rate": 1e-3, "batch_size": 4, "workers": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    finish(start(tmp_path, "calm"))
    for _ in range(2):
        killed = start(tmp_path, "killed")
        training = tmp_path / "killed" / "scratch" / "recover"
        before = set(training.glob("*/step_*"))
        deadline = time.monotonic() + 400
        while not set(training.glob("*/step_*/rank_*.safetensors")) - before:
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        wait_until_gone(killed.pid)
    finish(start(tmp_path, "killed"))
    assert results(tmp_path / "killed") == results(tmp_path / "calm")
    assert not list(training.iterdir())


def wait_until_gone(session: int) -> None:
    """Ray's workers, the ranks among them, end with the driver."""
    deadline = time.monotonic() + 30
    while any("ray::" in name for name in members(session)):
        assert time.monotonic() < deadline, members(session)
        time.sleep(0.1)


def members(session: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, ProcessLookupError):
            continue  # it is gone, which is the answer
    return found


def results(place: Path) -> dict[str, object]:
    """What the recovery came to, bit by bit, and what was made of it."""
    workspace = Workspace(place)
    records = [json.loads(path.read_text()) for path in sorted((place / "records" / "recover").glob("*.json"))]
    models = {record["label"]: (record["blobs"], record["values"]) for record in records}
    evaluation = workspace.read_json("evaluation.json")
    return {"models": models, **{name: evaluation[name]["kl_nats"] for name in ("child", "uniform", "depth")}}
