"""Shares of a cluster, admission, and clusters that grow: real nodes, token on, the command line as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml

from inlay.cluster import ClusterSettings, connect
from inlay.cluster.jobs import JobServer
from inlay.cluster.pieces import Resources

Nodes = Callable[..., AbstractContextManager[Any]]

PIECES = """
import json, sys
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Resources, Store, connect, run_pieces

def work(arguments, context):
    import time
    begun = time.time()
    time.sleep(arguments["seconds"])
    return PieceOutput({"begun": begun, "ended": time.time(), "threads": context.threads})

folder, address, count, seconds, share, workers = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:7])
resources = Resources(**share, threads=int(share["cpus"]))
pieces = [Piece(f"{n:064}", str(n), "work", 1, work, {"seconds": seconds}, resources) for n in range(count)]
notes = []

def on_event(event):
    if event.note:
        print(event.kind, event.note, file=sys.stderr, flush=True)

with connect(ClusterSettings(address=address, share=resources, workers=workers)) as cluster:
    records = run_pieces(Store(folder), pieces, cluster, on_event=on_event)
times = [record.values for record in records]
together = max(sum(a["begun"] <= b["begun"] < a["ended"] for a in times) for b in times)
print(json.dumps({"together": together, "threads": times[0]["threads"]}))
"""


def run(
    nodes: Any, folder: Path, count: int, seconds: float, workers: int | None = None, **share: float
) -> tuple[dict[str, int], str]:
    """Runs pieces from outside the cluster; how many ran together, and what was told."""
    arguments = [str(folder), nodes.address, *map(json.dumps, (count, seconds, {"cpus": 1, **share}, workers))]
    done = subprocess.run(
        [sys.executable, "-c", PIECES, *arguments],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told, done.stderr


@pytest.mark.slow
def test_a_cluster_that_grows_is_waited_for_with_the_reason(ray_nodes: Nodes, tmp_path: Path) -> None:
    kind = {"resources": {"CPU": 3, "object_store_memory": 90 * 2**20}, "min_workers": 0, "max_workers": 1}
    with ray_nodes(cpus=1, growth={"large": kind}) as nodes:
        server = JobServer(nodes.url)
        deadline = time.monotonic() + 60
        while server.growth() is None:
            assert time.monotonic() < deadline
            time.sleep(1)
        server.check_share(Resources(cpus=3))
        told, notes = run(nodes, tmp_path / "grown", 2, 0.5, cpus=3)
        assert told == {"together": 1, "threads": 3}
        assert len(server.nodes()) == 2
        for line in notes.splitlines():
            assert line.startswith("waiting a worker needs 3 CPUs, and the largest node has 1 CPU; ")


@pytest.mark.slow
@pytest.mark.parametrize("grows", [True, False])
def test_the_second_autoscaler_is_asked_too(ray_nodes: Nodes, grows: bool) -> None:
    """The manifests have it, and a head without CPUs: where nodes may come, nothing is refused for want of them."""
    kind = {"resources": {"CPU": 3}, "min_workers": 0, "max_workers": 1}
    with ray_nodes(cpus=0, growth={"large": kind} if grows else None, v2=True) as nodes:
        server = JobServer(nodes.url)
        with connect(ClusterSettings(address=nodes.address, share=Resources(cpus=3))) as cluster:
            cluster.start()
            deadline = time.monotonic() + (60 if grows else 10)
            while (server.growth() is None or cluster.growth() is None) and time.monotonic() < deadline:
                time.sleep(1)
            if grows:
                server.check_share(Resources(cpus=3))
                server.check_together(Resources(cpus=3), 2)
                cluster.check_share()
            else:
                with pytest.raises(ValueError, match="the largest node has"):
                    server.check_share(Resources(cpus=3))
                with pytest.raises(ValueError, match="the largest node has"):
                    cluster.check_share(patience_seconds=1)


def verb(nodes: Any, *arguments: str, code: int = 0) -> str:
    """Runs a verb against the cluster's job server as a process; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "INLAY_SERVICES"))}
    environment |= {"COLUMNS": "80", "RAY_AUTH_MODE": "token"}
    done = commands.run(*arguments, "--address", nodes.url, env=environment, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def reach(server: JobServer, job_id: str, state: str) -> None:
    deadline = time.monotonic() + 120
    while server.job(job_id).state != state:
        assert time.monotonic() < deadline, server.job(job_id)
        time.sleep(0.3)


@pytest.fixture(scope="module")
def nodes(ray_nodes: Nodes) -> Iterator[Any]:
    """A node of one CPU, with a job server that runs two jobs at once; the last of the tests on it adds another."""
    with ray_nodes(cpus=1, slots=2) as nodes:
        yield nodes


@pytest.mark.slow
def test_a_job_that_can_never_fit_is_told_so_before_it_is_sent(nodes: Any, tmp_path: Path) -> None:
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.txt").write_text("once\n<|endoftext|>\n")
    job = {
        "parent": str(tmp_path),
        "data": {"distill": {"path": "train.txt"}, "validate": {"path": "held_out.txt"}},
        "space": {"ffn": ["no_op"]},
        "budget": {"parameters": "0.9x"},
        "cluster": {"memory_per_worker": "900GiB", "cpus_per_worker": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    said = verb(nodes, "submit", str(tmp_path / "job.yaml"), code=2)
    start = "inlay: cluster: a worker needs 2 CPUs, 900 GiB of memory, and the largest node has 1 CPU, "
    assert said.startswith(start)
    assert said.rstrip().endswith(f"at {nodes.url}; ask for less per worker")
    job |= {"cluster": {}, "recover": {"workers": 2}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert verb(nodes, "submit", str(tmp_path / "job.yaml"), code=2) == (
        "inlay: recover.workers: 2 workers with 1 CPU each are to run at once, and there is room for 1 at "
        f"{nodes.url}; lower it\n"
    )
    assert verb(nodes, "list") == "no jobs\n"


TURN = """
import os, sys, time
from inlay.cluster.jobs import JobServer
from inlay.cluster.runtime import ClusterSettings, connect
from inlay.cluster.turns import take_turn

with connect(ClusterSettings(workers=1, address="auto")) as cluster:
    cluster.start()
    server = JobServer(f"http://{cluster.dashboard}", allow_insecure=True)
    take_turn(server, sys.argv[1], lambda reason: print(reason, flush=True))
    print("began", flush=True)
    time.sleep(600)
"""
"""What a search's driver does before anything else."""


@pytest.mark.slow
def test_jobs_wait_for_their_turn_and_say_for_what(nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "turn.py").write_text(TURN)
    server = JobServer(nodes.url)

    def submit(name: str, priority: str = "normal", place: str = "") -> None:
        details = {"priority": priority, "workspace": place or f"/searches/{name}"}
        server.submit(name, f"exec {sys.executable} {tmp_path / 'turn.py'} {name}", {}, {}, details)

    def message(name: str) -> str:
        return str(json.loads(verb(nodes, "status", name, "--json"))["message"])

    for name in ("one", "two"):
        submit(name)
        reach(server, name, "RUNNING")
        assert server.logs(name).endswith("began\n")
    submit("three")
    submit("four")
    submit("minor", "low")
    deadline = time.monotonic() + 60
    while not server.job("minor").at_gate:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    time.sleep(3)
    submit("urgent", "high")
    states = {job.job_id: (job.state, job.before, job.at_gate) for job in server.jobs()}
    assert states | {"urgent": ("PENDING", 0, True)} == {
        "one": ("RUNNING", None, False),
        "two": ("RUNNING", None, False),
        "urgent": ("PENDING", 0, True),
        "three": ("PENDING", 1, False),
        "four": ("PENDING", 2, False),
        "minor": ("PENDING", 3, True),
    }
    where = "2 jobs run at once here, now two, one"
    assert message("urgent") == f"it waits for its turn: {where}"
    assert message("four") == f"it waits for its turn behind 2 others, 1 of higher priority: {where}"
    listed = [line.split()[:4] for line in verb(nodes, "list").splitlines()]
    assert ["minor", "PENDING", "3", "low"] in listed
    assert server.logs("minor").splitlines()[-1].startswith("it waits for its turn behind ")
    assert "four had not started and will not: it is STOPPED when its turn comes" in verb(nodes, "stop", "four")
    assert "one is STOPPED" in verb(nodes, "stop", "one")
    reach(server, "urgent", "RUNNING")
    assert server.job("three").state == "PENDING"
    submit("same", "high", "/searches/two/")
    assert message("same") == "it waits for the end of the job `two`, which has the same workspace"
    verb(nodes, "stop", "urgent")
    reach(server, "three", "RUNNING")
    assert server.job("same").state == "PENDING", "others pass"
    verb(nodes, "stop", "two")
    reach(server, "same", "RUNNING")
    reach(server, "four", "STOPPED")
    assert server.logs("four") == ""
    assert "minor is STOPPED" in verb(nodes, "stop", "minor"), "it was started, and waited by itself"
    for name in ("three", "same"):
        verb(nodes, "stop", name)


@pytest.mark.slow
def test_a_job_takes_its_share_of_a_cluster_and_no_more(nodes: Any, tmp_path: Path) -> None:
    nodes.add(2)
    nodes.wait(2)
    # Long enough for a slow machine to start all workers while the first piece runs.
    assert run(nodes, tmp_path / "all", 4, 6)[0] == {"together": 3, "threads": 1}
    assert run(nodes, tmp_path / "two-each", 3, 1, cpus=2)[0] == {"together": 1, "threads": 2}
    assert run(nodes, tmp_path / "at-most", 6, 3, workers=2)[0]["together"] == 2
    server = JobServer(nodes.url)
    assert sorted(node["CPU"] for node in server.nodes()) == [1, 2]
    server.check_share(Resources(cpus=2, memory_bytes=2**30))
    with pytest.raises(ValueError, match="cluster: a worker needs 5 CPUs, and the largest node has 2 CPUs at http"):
        server.check_share(Resources(cpus=5))
    server.check_together(Resources(), 3)
    with pytest.raises(ValueError, match="4 workers with 1 CPU each are to run at once, and there is room for 3 at"):
        server.check_together(Resources(), 4)
    with pytest.raises(ValueError, match=r"a worker needs 1 CPU, 0\.5 GPUs, and the largest node has . CPUs?, 0 GPUs"):
        server.check_share(Resources(gpus=0.5))


def test_a_machine_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path, job: Path) -> None:
    values = yaml.safe_load(job.read_text())
    job.write_text(yaml.safe_dump(values | {"cluster": {"cpus_per_worker": 4000}}))
    done = commands.run("run", job, timeout=200)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "inlay: cluster: a worker needs 4000 CPUs, and the largest node has "
    )


def test_more_ranks_than_this_machine_has_room_for_are_told_before_ray_is_started(tmp_path: Path, job: Path) -> None:
    values = yaml.safe_load(job.read_text())
    values["recover"] |= {"workers": 4000, "batch_size": 4000}
    (tmp_path / "train.txt").write_text("a story of one sequence\n<|endoftext|>\n" * 5000)
    job.write_text(yaml.safe_dump(values))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "ray.py").write_text("raise SystemExit('Ray is imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "first")}
    done = commands.run("run", job, "-w", tmp_path / "w", env=environment, timeout=200)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r"inlay: recover\.workers: 4000 workers with 1 CPU each are to run at once, and there is room for \d+; "
        r"lower it, or name a larger cluster in cluster\.address",
        done.stderr.splitlines()[-1],
    )
    assert not (tmp_path / "w" / "workspace.json").exists()
    assert not (tmp_path / "w" / "records").exists()
