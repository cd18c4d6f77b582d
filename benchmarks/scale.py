"""How many pieces a second the driver of a search keeps up with, on a simulated cluster of up to a thousand workers.

    python benchmarks/scale.py [--workers 10 100 1000] [--pieces 100000]

Ray and its workers are replaced by one process, which has so many pieces at once, tells how far they are, and answers
each after its two seconds. All else is what a search runs: the fan-out, its queue, its estimates, the lines that people
read. A second table is the same pieces, of no work at all, on a real Ray of this machine; a third, how long it takes to
find out what an earlier run has done, on a folder and on an S3-compatible server (moto's) of this machine.
"""

from __future__ import annotations

import argparse
import heapq
import io
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer

from inlay.cluster import Cluster, ClusterSettings, Store, connect
from inlay.cluster.capacity import Amounts, Growth
from inlay.cluster.fanout import run_pieces
from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, Record, Resources, piece_key
from inlay.cluster.records import SHARD, pack, survey
from inlay.cluster.tasks import Tasks
from inlay.cluster.worker import Order, Outcome
from inlay.nas.report.progress import Reporter

SINGLE_AT_MOST = 10_000
"""Records that are tried in a file each: to write more takes longer than all the rest."""
SECONDS = 2.0
"""What each piece takes on its worker."""
STEP_SECONDS = 0.005
"""How often the process that answers looks who is ready."""


def nothing(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece without work."""
    return PieceOutput({"layer": arguments["layer"]})


def pieces_of(number: int) -> list[Piece]:
    """Pieces of one stage that ask for a CPU each."""
    found = []
    for index in range(number):
        label = f"layer {index}"
        key = piece_key("work", 1, {"tokens": 4096}, {"layer": index}, label)
        found.append(Piece(key, label, "work", 1, nothing, {"layer": index, "settings": {"tokens": 4096}}, Resources()))
    return found


def answer(pipe: Connection, workers: int, seconds: float) -> None:
    """The process that stands for all workers: takes pieces, has `workers` of them at once, and answers."""
    queue: deque[tuple[int, Piece, str]] = deque()
    busy: list[tuple[float, int]] = []
    held: dict[int, tuple[Piece, str, float]] = {}
    while True:
        while pipe.poll(0 if busy or queue else None):
            kind, told = pipe.recv()
            if kind == "end":
                return
            if kind == "send":
                queue.append(told)
                continue
            now = time.monotonic()
            reports = {key: min(0.99, (now - begun) / seconds) for _, key, begun in held.values()}
            pipe.send(("progress", [reports.get(key) for key in told]))
        now = time.monotonic()
        while queue and len(held) < workers:
            number, piece, key = queue.popleft()
            held[number] = (piece, key, now)
            heapq.heappush(busy, (now + seconds, number))
        over = []
        while busy and busy[0][0] <= now:
            _, number = heapq.heappop(busy)
            piece = held.pop(number)[0]
            over.append((number, outcome_of(piece, seconds)))
        if over:
            pipe.send(("over", over))
        time.sleep(STEP_SECONDS)


def outcome_of(piece: Piece, seconds: float) -> Outcome:
    """What a worker would send back."""
    named = {"key": piece.key, "label": piece.label, "stage": piece.stage, "version": piece.version, "seed": piece.seed}
    record = Record(**named, state="done", reason="", blobs={}, values=dict(piece.arguments), seconds=seconds)
    told = {"fraction": 1.0, "node": "simulated", "numbers": {"loss": 1.0}, "waits": ""}
    return Outcome(record, seconds=seconds, told=told)


class SimulatedTasks(Tasks):
    """Pieces that the other process answers; references are numbers."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._sent = pipe, 0
        self._over: list[tuple[Any, Any]] = []

    def send(self, order: Order, **options: Any) -> int:
        self._sent += 1
        self._pipe.send(("send", (self._sent, order.piece, order.progress_key)))
        return self._sent

    def completed(self, references: Sequence[Any], wanted: int, timeout_seconds: float) -> list[tuple[Any, Any]]:
        end = time.monotonic() + timeout_seconds
        while len(self._over) < wanted and self._pipe.poll(max(0.0, end - time.monotonic())):
            self._take()
        found, self._over = self._over, []
        return found

    def progress(self, keys: Sequence[str]) -> list[Mapping[str, Any] | None]:
        self._pipe.send(("progress", list(keys)))
        while (told := self._take()) is None:
            pass
        named = {"node": "simulated", "numbers": {}, "waits": ""}
        return [None if fraction is None else {"fraction": fraction, **named} for fraction in told]

    def cancel(self, reference: Any) -> None:
        """Nothing is ever lost here."""

    def forget(self, keys: Sequence[str]) -> None:
        """It keeps none."""

    def call_off(self, key: str) -> None:
        """No piece is."""

    def go_on(self, key: str) -> None:
        """The same."""

    def _take(self) -> list[float | None] | None:
        kind, told = self._pipe.recv()
        if kind == "progress":
            return list(told)
        self._over += told
        return None


class SimulatedCluster(Cluster):
    """A running cluster of one node with so many CPUs, whose workers are one process."""

    def __init__(self, workers: int, pipe: Connection) -> None:
        super().__init__(ClusterSettings(address="simulated"))
        self._workers, self._pipe = workers, pipe

    def start(self) -> None:
        """It runs already."""

    def tasks(self) -> Tasks:
        return SimulatedTasks(self._pipe)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "simulated", "Resources": {"CPU": float(self._workers)}, "Alive": True}]

    def amounts(self) -> list[Amounts]:
        return [{"CPU": float(self._workers)}]

    def handed_over(self, task_id: str) -> float | None:
        return None

    def growth(self) -> Growth | None:
        return None


def simulated(workers: int, number: int, row: Connection) -> None:
    """One search's stage of so many pieces; in a process of its own, so that its memory is known."""
    here, there = multiprocessing.Pipe()
    other = multiprocessing.Process(target=answer, args=(there, workers, SECONDS), daemon=True)
    other.start()
    cluster, reporter = SimulatedCluster(workers, here), Reporter(io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        pieces, began, cpu = pieces_of(number), time.monotonic(), time.process_time()
        reporter.stage_started("distill")
        records = run_pieces(Store(folder), pieces, cluster, on_event=reporter.piece_event)
        took, spent = time.monotonic() - began, time.process_time() - cpu
    assert [record.label for record in records] == [piece.label for piece in pieces]
    here.send(("end", None))
    cluster.close()
    row.send((took, spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def on_ray(number: int, workers: int) -> tuple[float, float]:
    """Seconds of so many pieces on a Ray of this machine, and those of them that this process computed."""
    with tempfile.TemporaryDirectory() as folder, connect(ClusterSettings(workers=workers)) as cluster:
        run_pieces(Store(Path(folder) / "first"), pieces_of(2 * workers), cluster)
        began, cpu = time.monotonic(), time.process_time()
        run_pieces(Store(Path(folder) / "second"), pieces_of(number), cluster)
        return time.monotonic() - began, time.process_time() - cpu


def serve(pipe: Connection) -> None:
    """An S3-compatible server, which tells its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    pipe.send("http://{}:{}".format(*server.get_host_and_port()))
    pipe.recv()


def surveyed(store: Store, number: int, *, packed: bool) -> tuple[float, int]:
    """Seconds in which the records of so many pieces are found, and the files that hold them."""
    pieces = pieces_of(number)
    records = [record for piece in pieces if (record := outcome_of(piece, SECONDS).record) is not None]
    if packed:
        for first in range(0, number, SHARD):
            pack(store, records[first : first + SHARD])
    else:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda record: store.put(f"records/work/{record.key}.json", record.to_bytes()), records))
    files = len(store.list("records/")) + len(store.list("shards/"))
    began = time.monotonic()
    kept, _ = survey(store, pieces)
    took = time.monotonic() - began
    assert kept == {record.key: record for record in records}
    return took, files


def resumes(numbers: Sequence[int]) -> Iterator[str]:
    """Rows of the third table."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    server.start()
    os.environ |= {"AWS_ENDPOINT_URL": here.recv(), "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    import s3fs

    s3fs.S3FileSystem().mkdir("bucket")
    for number in numbers:
        for packed in (False, True):
            if number > SINGLE_AT_MOST and not packed:
                continue
            with tempfile.TemporaryDirectory() as folder:
                for name, url in (("folder", f"{folder}/w"), ("S3", f"s3://bucket/{number}-{packed}")):
                    took, files = surveyed(Store(url), number, packed=packed)
                    how = "shards" if packed else "a file each"
                    yield f"| {name} | {number:,} | {how} | {files:,} | {took:.2f} |"
    here.send("end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--pieces", type=int, default=100_000, help="of the largest cluster; others in proportion")
    parser.add_argument("--records", nargs="*", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scale.md")
    options = parser.parse_args()
    lines = [
        "# What the driver keeps up with",
        "",
        f"Simulated workers, each with a piece for {SECONDS:g} s; written by `benchmarks/scale.py`. *Possible* is what",
        "the workers could end at most; the driver's time is its own processor time.",
        "",
        "| workers | pieces | seconds | pieces a second | possible | share | driver's ms a piece | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for workers in options.workers:
        number = options.pieces * workers // max(options.workers)
        here, there = multiprocessing.Pipe()
        run = multiprocessing.Process(target=simulated, args=(workers, number, there))
        run.start()
        took, spent, peak = here.recv()
        run.join()
        possible = workers / SECONDS
        lines.append(
            f"| {workers:,} | {number:,} | {took:.1f} | {number / took:.1f} | {possible:.0f} "
            f"| {number / took / possible:.2f} | {1000 * spent / number:.2f} | {peak / 2**20:.0f} MiB |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        "Pieces without work on a real Ray of this machine:",
        "",
        "| workers | pieces | pieces a second | driver's ms a piece |",
        "|---|---|---|---|",
    ]
    took, spent = on_ray(1000, 2)
    lines.append(f"| 2 | 1,000 | {1000 / took:.0f} | {spent:.2f} |")
    print(lines[-1])
    lines += [
        "",
        "What an earlier run has done, as it is found when the same command is given again; records without blobs:",
        "",
        "| store | records | in | files | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in resumes(options.records):
        lines.append(row)
        print(row, flush=True)
    options.output.write_text("\n".join([*lines, "", footer(), ""]))


if __name__ == "__main__":
    main()
