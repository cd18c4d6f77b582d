"""A worker that hangs between two pieces: the next one is given to it, and is never begun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

Nodes = Callable[..., AbstractContextManager[Any]]

PIECES = """
import json, os, subprocess, sys, time
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Store, connect, fanout, run_pieces

fanout._BEGINNING_SECONDS = 6.0  # enough where nothing else runs
FREEZE = "import os, signal, sys, time; time.sleep(0.5); os.kill(int(sys.argv[1]), signal.SIGSTOP)"

def work(arguments, context):
    # The worker stops once the piece is over, as a machine that stalls does.
    if arguments["freeze"]:
        subprocess.Popen([sys.executable, "-c", FREEZE, str(os.getpid())], start_new_session=True)
    return PieceOutput({"pid": os.getpid()})

pieces = [Piece(f"{n:064}", name, "work", 1, work, {"freeze": n == 0}) for n, name in enumerate(("freezes", "late"))]
notes = []
store = Store(sys.argv[1])
with connect(ClusterSettings(address=json.loads(sys.argv[2]), workers=1)) as cluster:
    (frozen,) = run_pieces(store, pieces[:1], cluster)
    time.sleep(2)
    (late,) = run_pieces(
        store, pieces[1:], cluster, deadline_seconds=5, on_event=lambda event: notes.append(event.note)
    )
print(json.dumps({"attempts": late.attempts, "pids": [frozen.values["pid"], late.values["pid"]], "notes": notes}))
"""


def check_that_a_frozen_worker_is_left(folder: Path, address: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PIECES, str(folder), json.dumps(address)],
        # Another cluster's address, which is not to be asked.
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["attempts"] >= 2
    assert len(set(told["pids"])) == 2
    assert "it made no progress for 5 s" in told["notes"]


@pytest.mark.slow
def test_a_worker_that_hangs_between_pieces_is_left(tmp_path: Path) -> None:
    check_that_a_frozen_worker_is_left(tmp_path, None)


@pytest.mark.slow
def test_on_a_cluster_where_pieces_are_queued_too(ray_nodes: Nodes, tmp_path: Path) -> None:
    with ray_nodes(cpus=1) as nodes:
        check_that_a_frozen_worker_is_left(tmp_path, nodes.address)


ALONE = """
import json, sys, time
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Store, connect, run_pieces
from inlay.cluster.errors import PieceError

def work(arguments, context):
    print("begun", flush=True)
    for _ in range(arguments["steps"]):
        context.progress(0.5)
        time.sleep(0.5)
    return PieceOutput()

workspace, address, name = sys.argv[1:]
alone = name == "times"
piece = Piece(f"{len(name):064}", name, "measure", 1, work, {"steps": 1 if alone else 400})
with connect(ClusterSettings(address=address)) as cluster:
    begun = time.monotonic()
    try:
        run_pieces(
            Store(workspace), [piece], cluster, deadline_seconds=6, exclusive=alone,
            on_event=lambda event: print(event.kind, flush=True),
        )
    except PieceError as error:
        print(json.dumps({"kind": error.kind, "said": str(error), "seconds": time.monotonic() - begun}))
"""


@pytest.mark.slow
def test_what_must_be_alone_does_not_wait_for_ever(ray_nodes: Nodes, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        return [sys.executable, "-c", ALONE, str(tmp_path / "workspace"), nodes.address, name]

    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    with (
        ray_nodes(cpus=2) as nodes,
        subprocess.Popen(command("another job's"), env=environment, stdout=subprocess.PIPE, text=True) as busy,
    ):
        assert busy.stdout is not None
        while "started" not in busy.stdout.readline():
            assert busy.poll() is None
        done = subprocess.run(
            command("times"), env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        busy.terminate()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kind"] == "NeverAlone"
    assert told["said"].startswith("measure, times: for 6 s no node with 1 CPU had nothing else to do, and nothing ")
    assert "every node that has 1 CPU is taken" in told["said"]
    assert "name its table in hardware.costs" in told["said"]
    assert 6 <= told["seconds"] < 40
