"""The fault campaign: whole searches on a cluster of several nodes, broken on purpose, compared byte for byte.

    python benchmarks/faults.py [--faults 100] [--seed 0] [--state FOLDER] [--output docs/reliability.md]

One search runs undisturbed. The others get several faults each, at numbers of finished pieces that the seed picks, of
the kinds in KINDS in turns. A search ends when its command says so; where a fault ends the driver, the same command is
given again. Stopped and started again with the same --state, the campaign goes on. The page is written at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from fault_cluster import MARK, NODES, Disk, Machines, Tracker, busy_workers, end_all, fill_object_stores, ours, starve
from machine import footer

from inlay.cluster.processes import free_port
from inlay.cluster.ray_environment import LOOPBACK_ONLY
from inlay.cluster.ray_token import protect_token
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
}
TABLES = ("costs", "scenarios", "losses", "scores", "recovery")
SAME = ("library.json", "texts.json", "tables/corrections.json", *(f"tables/{name}.parquet" for name in TABLES))
FAULTS_A_SEARCH = 6
PATIENCE_SECONDS = 300.0
DEADLINE_SECONDS = 10.0
HANG_SECONDS = 100.0  # a piece that its worker does not begin is given 60 s


@dataclass
class Search:
    """One search under way."""

    index: int
    workspace: Path
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    starts: int = 0
    in_flight: int = 0
    """Pieces that were under way when the driver or the head was lost."""
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Finished pieces that are committed."""
        return sum(1 for _ in (self.workspace / "records").rglob("*.json"))

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
        self.tracker.start()
        self.machines = Machines()
        self.kinds = [kind for kind in KINDS if kind != "full disk" or self.disk.mounted]
        self.restart_tracker_at: float | None = None

    def run(self, faults: int, write: Callable[[dict[str, Any]], None]) -> None:
        """Search until `faults` faults are done; `write` gets the state after every search."""
        if self.state["expected"] is None:
            measured = self.search(-2, []).workspace / "tables" / "costs.parquet"
            shutil.copyfile(measured, self.folder / "costs.parquet")
            search = self.search(-1, [])
            self.state["expected"] = {
                "files": fingerprint(search.workspace),
                "records": search.records,
                "seconds": self.seconds,
            }
            self.save()
        while sum(len(search["faults"]) for search in self.state["searches"]) < faults:
            index = len(self.state["searches"])
            chance = random.Random(f"{self.seed}/{index}")
            points = sorted(chance.sample(range(1, int(self.state["expected"]["records"] * 0.9)), FAULTS_A_SEARCH))
            search = self.search(index, list(zip(points, self.next_kinds(chance), strict=True)))
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
            write(self.state)
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
        search = Search(index, self.disk.folder / "search", self.folder / f"search-{index}.log")
        subprocess.run(["rm", "-rf", str(search.workspace)], check=True)
        search.log.unlink(missing_ok=True)
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
        return search

    def give(self, search: Search) -> None:
        """Give the command, again or for the first time, on the cluster that there is."""
        search.starts += 1
        if search.starts > 3 * FAULTS_A_SEARCH:
            raise SystemExit(f"search {search.index} was started {search.starts} times; its log is {search.log}")
        job = write_job(self.folder, self.machines.address, self.tracker.uri)
        command = [sys.executable, "-m", "inlay.nas.cli", "run", str(job), "-w", str(search.workspace)]
        with search.log.open("ab") as log:
            search.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

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
        deadline = time.monotonic() + 30
        while (left := ours()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.state["left_at_the_end"] = [" ".join(process.cmdline())[:100] for process in left]
        end_all(left)
        self.save()


def fingerprint(workspace: Path) -> dict[str, str]:
    """Digests of the tables, of every trained variant and of the three recovered models."""
    found = {name: hashlib.sha256((workspace / name).read_bytes()).hexdigest() for name in SAME}
    run = json.loads((workspace / "run.json").read_text())
    return found | {f"model {name}": blob for name, blob in run["models"].items()} | {"chosen": run["chosen"]}


def write_job(folder: Path, address: str, tracking: str) -> Path:
    """A whole search of seconds on the parent that ships with inlay; measured costs are given."""
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
        "cluster": {"address": address, "patience": DEADLINE_SECONDS},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def page(state: dict[str, Any]) -> str:
    """docs/reliability.md: what was broken, what it cost, and whether anything came out differently."""
    searches = state["searches"]
    faults = [fault for search in searches for fault in search["faults"]]
    unequal = [search["index"] for search in searches if not search["equal"]]
    left = sum(search["left_running"] for search in searches) + len(state["left_at_the_end"])
    rows = "\n".join(
        f"| {kind} | {what} | {len(of)} | {sum(fault['noticed'] for fault in of)} |"
        for kind, what in KINDS.items()
        for of in [[fault for fault in faults if fault["kind"] == kind]]
    )
    times, expected = sorted(search["seconds"] for search in searches), state["expected"]
    equal = f"{len(searches) - len(unequal)} of {len(searches)} searches"
    repeated, starts = (sum(search[name] for search in searches) for name in ("repeated", "starts"))
    return f"""# What it survives

Written by `benchmarks/faults.py`, which breaks whole searches on purpose and compares what comes out, byte for byte,
with an undisturbed one. The cluster: a head without CPUs for pieces and {NODES} nodes of one CPU, processes of one
machine, token on; the parent that ships with inlay; costs given. Undisturbed, a search commits
{expected["records"]} pieces in {expected["seconds"]:g} s.

| fault | what is done | done | noticed |
|---|---|---|---|
{rows}

- **{len(faults)} faults** over {len(searches)} searches, {FAULTS_A_SEARCH} a search, seed {state["seed"]}.
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "inlay-faults")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "reliability.md")
    options = parser.parse_args()
    os.environ |= {MARK: str(os.getpid()), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["INLAY_MEASURED"] = str(options.state.absolute() / "measured")
    os.environ |= {"OMP_NUM_THREADS": "1", LOOPBACK_ONLY[0]: LOOPBACK_ONLY[1]}
    protect_token()
    campaign = Campaign(options.state, options.seed)
    try:
        campaign.run(options.faults, lambda state: None)
    finally:
        campaign.close()
    options.output.write_text(page(campaign.state))


if __name__ == "__main__":
    main()
