"""Pieces that ask for more than a CPU: what the node has of it bounds how many are sent, and those that wait are not
hung."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def told_by(program: str, folder: Path, has: dict[str, int]) -> Any:
    """What a program says; Ray takes this machine to have what `has` says, which the pieces book and never touch."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "workspace")],
        env=os.environ | {"RAY_OVERRIDE_RESOURCES": json.dumps(has)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PIECES = """
import json, sys, time
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Resources, Store, connect, fanout, run_pieces

fanout._BEGINNING_SECONDS = 6.0  # enough where nothing else runs

def work(arguments, context):
    begun = time.time()
    time.sleep(4)
    return PieceOutput({"begun": begun, "ended": time.time()})

share = Resources(cpus=0.25, gpus=1)
pieces = [Piece(f"{n:064}", f"piece {n}", "work", 1, work, {}, share) for n in range(5)]
events = []
with connect(ClusterSettings(share=share)) as cluster:
    records = run_pieces(Store(sys.argv[1]), pieces, cluster, deadline_seconds=12, on_event=events.append)
    places = [cluster.places(wish) for wish in (share, Resources(gpus=0.25), Resources(cpus=0.25))]
times = sorted((record.values["begun"], record.values["ended"]) for record in records)
print(json.dumps({
    "attempts": [record.attempts for record in records],
    "notes": [event.note for event in events if event.note],
    "apart": all(before[1] <= after[0] for before, after in zip(times, times[1:])),
    "took": times[-1][1] - times[0][0],
    "places": places,
}))
"""


@pytest.mark.slow
def test_a_queue_for_the_one_gpu_that_is_longer_than_the_deadline_is_not_hung(tmp_path: Path) -> None:
    told = told_by(PIECES, tmp_path, {"GPU": 1})
    assert told["took"] > 12, "the last piece waited longer than the deadline"
    assert (told["attempts"], told["notes"], told["apart"]) == ([1] * 5, [], True)
    one, quarter, of_cpus = told["places"]
    assert one == 1
    assert quarter == min(4, int(of_cpus / 4))
    assert of_cpus >= 4


KINDS = """
import json, sys
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Resources, Store, connect, run_pieces
from inlay.cluster.errors import PieceError

def work(arguments, context):
    return PieceOutput({"done": True})

told = {}
with connect(ClusterSettings()) as cluster:
    for kind in ("H100", "A100"):
        share = Resources(cpus=0.25, gpus=1, gpu_type=kind)
        try:
            piece = Piece("0" * 63 + kind[0].lower(), kind, "work", 1, work, {}, share)
            (record,) = run_pieces(Store(sys.argv[1]), [piece], cluster)
            told[kind] = record.values
        except PieceError as error:
            told[kind] = str(error)
print(json.dumps(told))
"""


def test_pieces_run_where_the_kind_of_gpu_is_that_they_ask_for(tmp_path: Path) -> None:
    told = told_by(KINDS, tmp_path, {"GPU": 1, "accelerator_type:H100": 1})
    assert told["H100"] == {"done": True}
    assert told["A100"].startswith("work, A100: a worker needs 0.25 CPUs, 1 GPU, A100, and the largest node has ")
    assert told["A100"].endswith("1 GPU, no A100")


STAYING = """
import json, os, sys
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Resources, Store, connect, run_pieces

def work(arguments, context):
    if arguments["dies"] and context.attempt == 1:
        os._exit(1)
    if arguments["wants"] and context.attempt == 1:
        raise MemoryError("no room")
    return PieceOutput({"pid": os.getpid(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"]})

def pids(cluster, name, share, count=3, dies=-1, wants=-1, **options):
    pieces = [
        Piece(f"{name}{n:063}", f"{name} {n}", "work", 1, work, {"dies": n == dies, "wants": n == wants}, share)
        for n in range(count)
    ]
    records = run_pieces(Store(sys.argv[1]), pieces, cluster, **options)
    return [(record.values["pid"], record.values["gpus"]) for record in records]

share, half = Resources(cpus=0.25, gpus=1), Resources(cpus=0.25, gpus=0.5)
with connect(ClusterSettings(share=share)) as cluster:
    told = {
        "first": pids(cluster, "a", share),
        "second": pids(cluster, "b", share, dies=1),
        "third": pids(cluster, "c", share, wants=1),
        "alone": pids(cluster, "d", share, exclusive=True),
        "again": pids(cluster, "e", share),
        "halves": pids(cluster, "f", half, 6),
    }
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_worker_with_a_gpu_stays_and_is_replaced_when_it_is_lost(tmp_path: Path) -> None:
    told = told_by(STAYING, tmp_path, {"GPU": 1})
    assert {gpu for each in told.values() for _, gpu in each} == {"0"}
    pids = {name: [pid for pid, _ in each] for name, each in told.items()}
    assert len({*pids["first"]}) == 1
    first, second = pids["first"][0], [*dict.fromkeys(pids["second"])]
    assert second[0] == first, "from one fan-out to the next"
    assert len({first, *second}) == 2, "the one that died is replaced once"
    assert len({*pids["third"]}) == 2, "want of memory is answered by a new process"
    assert len({*pids["alone"]}) == 3, "what is measured has a process of its own"
    assert not {*pids["alone"]} & {*pids["third"], *pids["again"]}, "and nobody beside it holds the GPU"
    assert len({*pids["again"]}) == 1
    assert len({*pids["halves"]}) == 2
    assert not {*pids["halves"]} & {*pids["again"]}
