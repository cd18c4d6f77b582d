"""Whole searches that lose workers, nodes, their driver or the head, fill the object store, or move to another cluster.

Real nodes, token on; the cost table is given, so that every search must end with the same bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from inlay.cluster import Store, parse_record
from inlay.cluster.jobs import JobServer

Nodes = Callable[..., AbstractContextManager[Any]]
COMPARED = ("scores", "losses", "costs")


@pytest.fixture
def costs(job: Path, tmp_path: Path) -> Path:
    """The job's own cost table, measured once, and named in it; the undisturbed search is in `calm`."""
    done = command("run", job, "-w", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    table = tmp_path / "costs.parquet"
    table.write_bytes((tmp_path / "first" / "tables" / "costs.parquet").read_bytes())
    change(job, hardware={"costs": str(table)}, distill={"tokens": "4k"}, recover={"tokens": "1k"})
    done = command("run", job, "-w", tmp_path / "calm")
    assert done.returncode == 0, done.stderr
    return table


def change(job: Path, **sections: dict[str, Any]) -> None:
    """Changes single keys of the job file."""
    values = yaml.safe_load(job.read_text())
    for name, keys in sections.items():
        values.setdefault(name, {}).update(keys)
    job.write_text(yaml.safe_dump(values))


def command(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inlay.nas.cli", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def result(place: Path) -> dict[str, Any]:
    """What must be the same: tables byte for byte, and every record but for what says who made it.

    The pool's table has times that each search takes anew; what it holds besides is in the records.
    """
    store = Store(place)
    records = [
        parse_record(store.get(key), key).identity() for key in store.list("records/") if "true_times" not in key
    ]
    return {
        "records": sorted(json.dumps(record, sort_keys=True) for record in records if record["stage"] != "measure"),
        **{name: (place / "tables" / f"{name}.parquet").read_bytes() for name in COMPARED},
    }


STAGES = ("ray::distill", "ray::recover", "ray::score", "ray::advance", "ray::calibrate")


def workers(nodes: Any, stages: tuple[str, ...] = STAGES) -> Iterator[psutil.Process]:
    """The workers of a cluster that have a piece of the search."""
    for node in nodes.nodes:
        try:
            family = psutil.Process(node.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                title = process.cmdline()[0]
            except (psutil.Error, IndexError):
                continue
            if title.startswith(stages):
                yield process


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def records_of(place: Path, stage: str) -> int:
    return len(list((place / "records" / stage).glob("*.json"))) if (place / "records" / stage).is_dir() else 0


@pytest.mark.slow
def test_whatever_is_lost_the_tables_are_the_same(ray_nodes: Nodes, job: Path, costs: Path, tmp_path: Path) -> None:
    calm = result(tmp_path / "calm")
    with ray_nodes(cpus=1) as nodes:
        for count in (2, 3):
            nodes.add(1)
            nodes.wait(count)
        server = JobServer(nodes.url)

        # A worker, then a node, while the library is made.
        place = tmp_path / "lost"
        submit(nodes, job, "lost", place)
        wait_for(lambda: next(workers(nodes), None)).kill()
        wait_for(lambda: records_of(place, "distill") >= 1)
        nodes.lose(2)
        assert server.wait("lost", 300).state == "SUCCEEDED", server.logs("lost")
        assert "retried" in server.logs("lost")
        assert result(place) == calm

        # The driver; the same job goes on, on a smaller cluster.
        place = tmp_path / "driver"
        submit(nodes, job, "driver", place)
        wait_for(lambda: records_of(place, "calibrate") >= 1)
        driver = next(p for p in psutil.process_iter() if is_driver(p, str(nodes.port), "inlay.nas.driver"))
        driver.kill()
        assert server.wait("driver", 120).state == "FAILED"
        submit(nodes, job, "again", place)
        assert server.wait("again", 300).state == "SUCCEEDED", server.logs("again")
        assert result(place) == calm
        submit(nodes, job, "head", tmp_path / "head")
        wait_for(lambda: records_of(tmp_path / "head", "calibrate") >= 1)

        # The head, and with it everything.
        for number in (0, 1):
            nodes.lose(number)
    with ray_nodes(cpus=2) as nodes:
        submit(nodes, job, "head", tmp_path / "head")
        server = JobServer(nodes.url)
        assert server.wait("head", 300).state == "SUCCEEDED", server.logs("head")
        assert result(tmp_path / "head") == calm


def is_driver(process: psutil.Process, port: str, module: str) -> bool:
    try:
        return module in process.cmdline() and port in process.environ().get("RAY_ADDRESS", "")
    except psutil.Error:
        return False


def submit(nodes: Any, job: Path, name: str, place: Path) -> None:
    done = command("submit", job, "--id", name, "-w", place, "--address", nodes.url)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_head_that_goes_ends_a_run_with_one_sentence(ray_nodes: Nodes, job: Path, tmp_path: Path) -> None:
    with ray_nodes(cpus=2) as nodes:
        change(job, cluster={"address": nodes.address}, distill={"tokens": "20M"})
        process = subprocess.Popen(
            [sys.executable, "-m", "inlay.nas.cli", "run", str(job), "-w", str(tmp_path / "w")],
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # A long piece: between pieces the run may be inside a call that only Ray itself ends, after a minute.
            wait_for(lambda: next(workers(nodes, ("ray::distill",)), None))
            nodes.lose(0)
            _, errors = process.communicate(timeout=150)
        finally:
            process.kill()
    assert process.returncode == 1, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("inlay: the Ray cluster at ")
    assert " was lost: its head does not answer; what is finished is kept in " in last
    assert "Traceback" not in errors


FILLED = """
import sys
import numpy
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Store, connect, run_pieces

def work(arguments, context):
    return PieceOutput({"long": "x" * 3_000_000, "number": arguments["number"]}, {"blob": bytes(5_000_000)})

pieces = [Piece(f"{n:064}", str(n), "work", 1, work, {"number": n}) for n in range(12)]
with connect(ClusterSettings(workers=2, object_store_bytes=80 << 20)) as cluster:
    cluster.start()
    import ray
    held = [ray.put(numpy.ones(1 << 20)) for _ in range(12)]  # 96 MiB that stay in use
    records = run_pieces(Store(sys.argv[1]), pieces, cluster)
    print(sum(record.values["number"] for record in records), {record.attempts for record in records})
"""


@pytest.mark.slow
def test_a_full_object_store_is_spilled_and_stops_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLED, str(tmp_path / "w")], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (0, "66 {1}\n"), done.stderr
