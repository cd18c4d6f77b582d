"""The fault campaign: whole searches on a cluster of several nodes, broken on purpose, compared byte for byte.

    python benchmarks/faults.py [--faults 100] [--minutes 600] [--seed 0] [--state FOLDER] [--output FILE]

One search runs undisturbed. The others get several faults each, at numbers of finished pieces that the seed picks, of
the kinds in KINDS in turns; every other one is a search of CIRCUMSTANCES instead, which is one fault. A search ends
when its command says so; where a fault ends the driver, the same command is given again. Stopped and started again with
the same --state, the campaign goes on. The page is written at the end, or when the minutes are over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from fault_cluster import (
    MARK,
    NODES,
    Disk,
    Growing,
    Machines,
    Tracker,
    busy_workers,
    end_all,
    fill_object_stores,
    ours,
    starve,
)
from fault_identity import AHEAD_SECONDS, clock_ahead, elsewhere, may_be_elsewhere, new_boot
from fault_store import BUCKET, FaultyStore
from machine import footer

from inlay.cluster.processes import free_port
from inlay.cluster.ray_environment import LOOPBACK_ONLY
from inlay.cluster.ray_token import protect_token
from inlay.cluster.store import Store
from inlay.nas.embedded import corpus

KINDS = {
    "lost worker": "a worker at a piece is killed (SIGKILL)",
    "lost node": "a node is killed with all its processes; another one comes",
    "lost driver": "the search's own process is killed; the same command is given again",
    "lost head": "the head is killed, with the driver and all nodes; on a new cluster the same command is given again",
    "out of memory": "a worker at a piece is denied more address space: its allocations fail",
    "full object store": "another driver fills every node's object store twice over",
    "hung piece": "a worker at a piece is stopped (SIGSTOP)",
    "lost tracker": "the MLflow server is killed, and started again five seconds later",
    "full disk": "the workspace's file system is filled until the search says so; then the same command is given again",
    "clock ahead": f"a node comes whose clock is {AHEAD_SECONDS // 60} minutes ahead, and stays; a run of another "
    "machine with that clock wants the workspace, and is refused since the owner lives",
    "living owner": "the driver is stopped (SIGSTOP) until a run of another machine has taken the workspace over; then "
    "it goes on (SIGCONT), and has to end without a further commit",
    "refused entry": "the driver is killed, and an entry that can never be sent is put into the tracker's queue; the "
    "same command is given again",
}
CIRCUMSTANCES = {
    "failing reads": "the workspace is on a store of which one read in ten fails",
    "no conditional writes": "the store ignores If-None-Match, and is refused by name; then one that does not",
    "second autoscaler": "submitted to a head without CPUs whose cluster grows by autoscaler v2; then two nodes come",
}
ELSEWHERE = ("clock ahead", "living owner")
"""Kinds that need a process that takes itself for another machine's."""
TAKEN_OVER = "was taken over by"
PUT_ASIDE = "it is put aside in"
TABLES = ("costs", "scenarios", "losses", "scores", "recovery")
SAME = ("library.json", "texts.json", "tables/corrections.json", *(f"tables/{name}.parquet" for name in TABLES))
FAULTS_A_SEARCH = 6
PATIENCE_SECONDS = 1800.0
DEADLINE_SECONDS = 10.0
HANG_SECONDS = 100.0  # a piece that its worker does not begin is given 60 s


@dataclass
class Search:
    """One search under way."""

    index: int
    workspace: str
    """A folder, or the URL of a store."""
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    starts: int = 0
    boot: Path | None = None
    """The identity of the machine that its commands are given on, where that is another one."""
    in_flight: int = 0
    """Pieces that were under way when the driver or the head was lost."""
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Finished pieces that are committed."""
        return sum(1 for _ in (Path(self.workspace) / "records").rglob("*.json"))

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class Campaign:
    """The cluster, the tracker and the disk, and what was done with them so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.state_path = folder / "state.json"
        self.state: dict[str, Any] = {"schema": 1, "seed": seed, "searches": [], "expected": None}
        if self.state_path.exists():
            self.state = json.loads(self.state_path.read_text())
            if self.state["seed"] != seed:
                raise SystemExit(f"{folder} holds a campaign of seed {self.state['seed']}; name another --state")
        self.disk = Disk(folder / "disk")
        self.tracker = Tracker(folder, free_port(0))
        self.store = FaultyStore()
        os.environ |= self.store.environment  # before the nodes start: their workers have what these have
        self.machines = Machines()
        self.ahead = clock_ahead(folder)
        self.kinds = [kind for kind in KINDS if kind != "full disk" or self.disk.mounted]
        if not (self.ahead and may_be_elsewhere(folder)):
            self.kinds = [kind for kind in self.kinds if kind not in ELSEWHERE]
        self.restart_tracker_at: float | None = None

    def open(self) -> None:
        """Start what runs beside the searches."""
        self.store.make_bucket()
        self.tracker.start()
        self.machines.start()

    def run(self, faults: int, until: float) -> None:
        """Search until `faults` faults are done, or the clock that `time.monotonic` has is at `until`."""
        if self.state["expected"] is None:
            measured = Path(self.search(-2, []).workspace) / "tables" / "costs.parquet"
            shutil.copyfile(measured, self.folder / "costs.parquet")
            search = self.search(-1, [])
            self.state["expected"] = {
                "files": fingerprint(search.workspace),
                "records": search.records,
                "seconds": self.seconds,
            }
            self.save()
        while sum(len(search["faults"]) for search in self.state["searches"]) < faults and time.monotonic() < until:
            index = len(self.state["searches"])
            chance = random.Random(f"{self.seed}/{index}")
            points = sorted(chance.sample(range(1, int(self.state["expected"]["records"] * 0.9)), FAULTS_A_SEARCH))
            if index % 2:
                search = self.circumstance(index, tuple(CIRCUMSTANCES)[index // 2 % len(CIRCUMSTANCES)])
            else:
                search = self.search(index, list(zip(points, self.next_kinds(chance), strict=True)))
            self.machines.take_away_added()
            end_all(left := busy_workers())
            self.state["searches"].append({
                "index": index,
                "seconds": self.seconds,
                "starts": search.starts,
                "repeated": search.in_flight + search.log.read_text().count(" retried: "),
                "equal": fingerprint(search.workspace) == self.state["expected"]["files"],
                "left_running": len(left),
                "faults": search.faults,
            })  # fmt: skip
            self.save()
            print(json.dumps(self.state["searches"][-1]), flush=True)

    def next_kinds(self, chance: random.Random) -> list[str]:
        """The kinds that came least so far, in a random order."""
        done = [fault["kind"] for search in self.state["searches"] for fault in search["faults"]]
        counts = {kind: done.count(kind) for kind in self.kinds}
        chosen = []
        for _ in range(FAULTS_A_SEARCH):
            least = min(counts.values())
            kind = chance.choice([kind for kind in self.kinds if counts[kind] == least])
            counts[kind] += 1
            chosen.append(kind)
        return chosen

    def search(self, index: int, plan: list[tuple[int, str]]) -> Search:
        """One search from an empty workspace to its end, with the faults of the plan."""
        search = self.begun(index, str(self.disk.folder / "search"))
        subprocess.run(["rm", "-rf", search.workspace], check=True)
        started = time.monotonic()
        self.give(search)
        chance = random.Random(f"{self.seed}/{index}/faults")
        while search.alive or search.process.returncode != 0:
            self.keep_tracker()
            if not search.alive:
                self.give(search)
            elif plan and search.records >= plan[0][0]:
                at, kind = plan.pop(0)
                fault = {"kind": kind, "at": at, "noticed": True}
                begun = time.monotonic()
                if getattr(self, kind.replace(" ", "_"))(search, chance, fault):
                    search.faults.append(fault | {"seconds": round(time.monotonic() - begun, 1)})
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise SystemExit(f"search {index} did not end within {PATIENCE_SECONDS:g} s; its log is {search.log}")
            time.sleep(0.02)
        self.seconds = round(time.monotonic() - started, 1)
        said = search.log.read_text().count(PUT_ASIDE)
        for fault in search.faults:
            if (before := fault.pop("put_aside_after", None)) is not None:
                fault["noticed"] = said > before
        return search

    def begun(self, index: int, workspace: str) -> Search:
        search = Search(index, workspace, self.folder / f"search-{index}.log")
        search.log.unlink(missing_ok=True)
        return search

    def circumstance(self, index: int, kind: str) -> Search:
        """One search under other circumstances, from nothing to its end."""
        started = time.monotonic()
        place = str(self.disk.folder / "search") if kind == "second autoscaler" else f"s3://{BUCKET}/{index}"
        search = self.begun(index, place)
        subprocess.run(["rm", "-rf", str(self.disk.folder / "search")], check=True)
        fault = {"kind": kind, "at": 0, "noticed": True}
        getattr(self, kind.replace(" ", "_"))(search, fault)
        self.seconds = round(time.monotonic() - started, 1)
        search.faults.append(fault | {"seconds": self.seconds})
        return search

    def failing_reads(self, search: Search, fault: dict[str, Any]) -> None:
        before, self.store.fails_reads = self.store.failed, True
        try:
            self.give_until_done(search)
        finally:
            self.store.fails_reads = False
        fault["noticed"] = self.store.failed > before

    def no_conditional_writes(self, search: Search, fault: dict[str, Any]) -> None:
        self.store.is_conditional = False
        try:
            self.give(search)
            search.process.wait(timeout=PATIENCE_SECONDS)
        finally:
            self.store.is_conditional = True
        said = f"the store {search.workspace} does not honour conditional writes (If-None-Match)"
        left = Store(search.workspace).list("records/")
        fault["noticed"] = search.process.returncode != 0 and said in search.log.read_text() and not left
        self.give_until_done(search)

    def second_autoscaler(self, search: Search, fault: dict[str, Any]) -> None:
        with Growing(self.folder / f"growing-{search.index}") as nodes:
            job = write_job(self.folder, None, self.tracker.uri)
            words = ["submit", str(job), "-w", search.workspace, "--wait", "--address", nodes.url]
            search.starts, search.process = 1, self.command(search.log, words, None)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while search.alive and "waiting: a worker needs 1 CPU" not in search.log.read_text():
                if time.monotonic() > deadline:
                    break
                time.sleep(0.5)
            told = re.search("waiting: a worker needs 1 CPU.*(on the way|autoscaler)", search.log.read_text())
            fault["noticed"] = search.alive and told is not None
            for _ in range(NODES):
                nodes.add(1)
            search.process.wait(timeout=PATIENCE_SECONDS)
        if search.process.returncode != 0:
            raise SystemExit(f"search {search.index} failed; its log is {search.log}")

    def give_until_done(self, search: Search) -> None:
        """Give the command until it succeeds."""
        deadline = time.monotonic() + 2 * PATIENCE_SECONDS
        self.give(search)
        while search.process.wait(timeout=max(1.0, deadline - time.monotonic())) != 0:
            self.give(search)

    def give(self, search: Search) -> None:
        """Give the command, again or for the first time, on the cluster that there is."""
        search.starts += 1
        if search.starts > 3 * FAULTS_A_SEARCH:
            raise SystemExit(f"search {search.index} was started {search.starts} times; its log is {search.log}")
        job = write_job(self.folder, self.machines.address, self.tracker.uri, apart="://" in search.workspace)
        search.process = self.command(search.log, ["run", str(job), "-w", search.workspace], search.boot)

    def command(
        self, file: Path, words: list[str], boot: Path | None, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A verb of inlay as a process that writes to a file."""
        set_variables = ["env", *(f"{name}={value}" for name, value in (environment or {}).items())]
        command = [*set_variables, sys.executable, "-m", "inlay.nas.cli", *words]
        with file.open("ab") as log:
            command = command if boot is None else elsewhere(boot, command)
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def clock_ahead(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.machines.add_ahead(self.ahead)
        job = write_job(self.folder, self.machines.address, self.tracker.uri)
        log = search.log.with_suffix(".ahead.log")
        log.unlink(missing_ok=True)
        boot = new_boot(self.folder)
        newcomer = self.command(log, ["run", str(job), "-w", search.workspace], boot, self.ahead)
        newcomer.wait(timeout=PATIENCE_SECONDS)
        said = log.read_text()
        # A search that ended meanwhile held nothing any more.
        fault["noticed"] = newcomer.returncode == 2 and " is in use by " in said
        return fault["noticed"] or search.alive

    def living_owner(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.pick(search, chance)
        if not search.alive:
            return False
        owner, before = search.process, search.log.read_text().count(TAKEN_OVER)
        search.in_flight += len(busy_workers())
        generation = self.generation(search)
        os.kill(owner.pid, signal.SIGSTOP)
        try:
            search.boot = new_boot(self.folder)
            self.give(search)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self.generation(search) <= generation and search.alive and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            os.kill(owner.pid, signal.SIGCONT)
        owner.wait(timeout=PATIENCE_SECONDS)
        fault["noticed"] = owner.returncode != 0 and search.log.read_text().count(TAKEN_OVER) > before
        return True

    def generation(self, search: Search) -> int:
        """Of the workspace's lock: who takes it over makes a higher one."""
        found = Path(search.workspace, "lock").glob("0*.json")
        return max((int(path.stem) for path in found), default=0)

    def refused_entry(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.pick(search, chance)
        search.in_flight += len(busy_workers())
        if not self.kill_driver(search):
            return False
        before = search.log.read_text().count(PUT_ASIDE)
        queue = next(Path(search.workspace, "tracking").glob("*/unsent.jsonl"), None)
        if queue is None:
            return False
        entry = {"ref": "search", "kind": "of another version", "values": {}}
        with queue.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        fault["put_aside_after"] = before
        return True

    def lost_worker(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        worker = self.pick(search, chance)
        if worker is not None:
            worker.kill()
        return worker is not None

    def lost_node(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.pick(search, chance)
        self.machines.lose_node(chance.randrange(NODES))
        self.machines.add()
        return search.alive

    def lost_driver(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.pick(search, chance)
        search.in_flight += len(busy_workers())
        return self.kill_driver(search)

    def lost_head(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.pick(search, chance)
        search.in_flight += len(busy_workers())
        alive = self.kill_driver(search)
        self.machines.lose_head()
        self.machines.start()
        return alive

    def out_of_memory(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        worker = self.pick(search, chance)
        if worker is not None:
            starve(worker)
        return worker is not None

    def full_object_store(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        filler = fill_object_stores(self.machines.address)
        assert filler.stdout is not None
        filled = filler.stdout.readline() == b"filled\n"
        filler.wait(timeout=120)
        return filled

    def hung_piece(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        worker = self.pick(search, chance)
        if worker is None:
            return False
        worker.suspend()
        deadline = time.monotonic() + HANG_SECONDS
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.2)
        if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            fault["noticed"] = False
            worker.kill()
        return True

    def lost_tracker(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.tracker.kill()
        self.restart_tracker_at = time.monotonic() + 5
        return True

    def full_disk(self, search: Search, chance: random.Random, fault: dict[str, Any]) -> bool:
        self.disk.fill()
        try:
            search.process.wait(timeout=120)
        finally:
            self.disk.free()
        fault["noticed"] = "no space" in search.log.read_text()[-3000:].lower()
        return True

    def pick(self, search: Search, chance: random.Random) -> psutil.Process | None:
        """A worker that is at a piece now; None when the search ended before there was one."""
        while search.alive:
            if workers := busy_workers():
                return chance.choice(workers)
            time.sleep(0.005)
        return None

    def kill_driver(self, search: Search) -> bool:
        alive = search.alive
        search.process.kill()
        search.process.wait()
        return alive

    def keep_tracker(self) -> None:
        if self.restart_tracker_at is not None and time.monotonic() > self.restart_tracker_at:
            self.restart_tracker_at = None
            self.tracker.start()

    def save(self) -> None:
        beside = self.state_path.with_suffix(".new")
        beside.write_text(json.dumps(self.state, indent=1) + "\n")
        beside.replace(self.state_path)

    def close(self) -> None:
        """End everything, and note what did not end by itself."""
        self.machines.stop()
        self.tracker.kill()
        self.disk.close()
        self.store.close()
        deadline = time.monotonic() + 30
        while (left := ours()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.state["left_at_the_end"] = [" ".join(process.cmdline())[:100] for process in left]
        end_all(left)
        self.save()


def fingerprint(workspace: str) -> dict[str, str]:
    """Digests of the tables, of every trained variant and of the three recovered models."""
    store = Store(workspace)
    found = {name: hashlib.sha256(store.get(name)).hexdigest() for name in SAME}
    run = store.get_json("run.json")
    return found | {f"model {name}": blob for name, blob in run["models"].items()} | {"chosen": run["chosen"]}


def write_job(folder: Path, address: str | None, tracking: str, apart: bool = False) -> Path:
    """A whole search of seconds on the parent that ships with inlay; measured costs are given. `apart`: scratch is not
    in the workspace."""
    for name, split in (("train", "train"), ("held_out", "held_out")):
        if not (folder / f"{name}.txt").exists():
            (folder / f"{name}.txt").write_text(corpus.text(split)[:60_000], encoding="utf-8")
    costs = folder / "costs.parquet"
    job = {
        "parent": "inlay:pystdlib",
        "data": {
            "distill": {"path": "train.txt", "sequence_length": 64},
            "validate": {"path": "held_out.txt", "tokens": 512},
        },
        "space": {"attention": [{"kv_heads": 2}, "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
        "distill": {"tokens": 2048, "batch_size": 4},
        "score": {"pairs": 2},
        "solve": {"pool": 3},
        "recover": {"tokens": 512, "batch_size": 4, "probes": 2},
        "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]} | ({"costs": str(costs)} if costs.exists() else {}),
        "budget": {"parameters": "0.85x"},
        "tracking": {"experiment": "faults", "uri": tracking},
        "cluster": {"address": address, "patience": DEADLINE_SECONDS}
        | ({"scratch": str(folder / "scratch")} if apart else {}),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def page(state: dict[str, Any]) -> str:
    """benchmarks/results/faults.md: what was broken, what it cost, and whether anything came out differently."""
    searches = state["searches"]
    faults = [fault for search in searches for fault in search["faults"]]
    unequal = [search["index"] for search in searches if not search["equal"]]
    left = sum(search["left_running"] for search in searches) + len(state["left_at_the_end"])
    rows = "\n".join(
        f"| {kind} | {what} | {len(of)} | {sum(fault['noticed'] for fault in of)} |"
        for kind, what in (KINDS | CIRCUMSTANCES).items()
        for of in [[fault for fault in faults if fault["kind"] == kind]]
    )
    times, expected = sorted(search["seconds"] for search in searches), state["expected"]
    equal = f"{len(searches) - len(unequal)} of {len(searches)} searches"
    repeated, starts = (sum(search[name] for search in searches) for name in ("repeated", "starts"))
    return f"""# Faults

Written by `benchmarks/faults.py`, which breaks whole searches on purpose and compares what comes out, byte for byte,
with an undisturbed one. The cluster: a head without CPUs for pieces and {NODES} nodes of one CPU, processes of one
machine, token on; the parent that ships with inlay; costs given. Undisturbed, a search commits
{expected["records"]} pieces in {expected["seconds"]:g} s.

| fault | what is done | done | noticed |
|---|---|---|---|
{rows}

- **{len(faults)} faults** over {len(searches)} searches, seed {state["seed"]}: at most {FAULTS_A_SEARCH} a search, and
  one where all of it is the fault (the last {len(CIRCUMSTANCES)} kinds).
- **{equal}** ended with the undisturbed search's tables, trained variants and models{_named(unequal)}.
- **{repeated} pieces** were done more than once, of {len(searches) * expected["records"]} that were committed.
- The command was given {starts} times for {len(searches)} searches. A search took {times[0]:g} to
  {times[-1]:g} s, median {times[len(times) // 2]:g} s.
- **{left} processes** were left running.

Compared are the tables {", ".join(TABLES)} and corrections, the library, the packed texts, and the weights of the
three recovered models. Noticed means that inlay dealt with it by itself, or said in its words why it stopped; a hung
piece has a deadline of {DEADLINE_SECONDS:g} s (`cluster.patience`), a minute where its worker was
stopped before it began, and is killed by the script after {HANG_SECONDS:g} s.

{footer()}
"""


def _named(unequal: list[int]) -> str:
    return f"; the searches {', '.join(map(str, unequal))} did not" if unequal else ""


def main() -> None:
    """Run the campaign, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=600.0, help="Begin no search after so many.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "inlay-faults")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "faults.md")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    os.environ |= {MARK: str(os.getpid()), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["INLAY_MEASURED"] = str(options.state.absolute() / "measured")
    os.environ["XDG_CACHE_HOME"] = str(options.state.absolute() / "cache")
    os.environ |= {"OMP_NUM_THREADS": "1", LOOPBACK_ONLY[0]: LOOPBACK_ONLY[1]}
    protect_token()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that it ends what it started
    campaign = Campaign(options.state, options.seed)
    try:
        campaign.open()
        campaign.run(options.faults, until)
    finally:
        campaign.close()
    options.output.write_text(page(campaign.state))


if __name__ == "__main__":
    main()
