"""What the service costs and carries: a submitted search beside `inlay run`, fan-out beside a bare loop, many jobs.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/service.py [submit] [overhead] [many] [list]

Each part stands alone and keeps its last result in service.json; the page is written from all of them. The services
are started in a folder of their own and ended again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import psutil
from machine import footer

PARTS = ("submit", "overhead", "many", "list")
JOBS, ENDED = 20, 100
LARGEST_GIB = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("service.json"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/service.md"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # so that the services are ended
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    with tempfile.TemporaryDirectory(prefix="inlay-bench-") as name:
        folder = Path(name)
        write_texts(folder)
        for part in options.parts or PARTS:
            measure = {"submit": submit, "overhead": overhead, "many": many, "list": listing}[part]
            results[part] = {**measure(folder, options.rounds), "footer": footer()}
            options.results.write_text(json.dumps(results, indent=1))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(results))
    print(options.output.read_text())


def submit(folder: Path, rounds: int) -> dict[str, Any]:
    """The same search in new workspaces, here and through the job server, in turns; seconds of wall time."""
    job = write_job(folder / "search.yaml", distill="20k", recover="20k", kinds=2)
    times: dict[str, list[float]] = {"run": [], "submit": []}
    with services(folder) as environment:
        for number in range(rounds):
            for verb, words in (("run", ()), ("submit", ("--wait",))):
                started = time.monotonic()
                place = folder / f"{verb}-{number}"
                inlay(environment, verb, job, "-w", place, *words)
                times[verb].append(time.monotonic() - started)
    return times


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    """The distill pieces of one search on one worker, beside the same functions called one after the other."""
    import torch

    from inlay.cluster.pieces import PieceContext
    from inlay.cluster.runtime import ClusterSettings, connect
    from inlay.nas.job import Job
    from inlay.nas.loop.search import Search
    from inlay.nas.loop.spans import scratch_of, spans_with_boundaries
    from inlay.nas.loop.texts import pack_texts, store_texts
    from inlay.nas.report.progress import Reporter
    from inlay.nas.stages.calibrate import calibrate_piece, sums_of
    from inlay.nas.stages.distill import distill_piece, keeps_outcomes, layer_variants
    from inlay.nas.stages.run import open_job_parent
    from inlay.nas.workspace import Workspace

    torch.set_num_threads(1)
    job = Job.load(write_job(folder / "overhead.yaml", distill="40k", recover="8k", kinds=4))
    parent, place = open_job_parent(job), Workspace(folder / "overhead")
    ids = store_texts(pack_texts(job, parent.tokenizer()), place).distill
    layers = range(parent.shape.num_layers)
    times: dict[str, list[float]] = {"bare": [], "pieces": []}
    with connect(ClusterSettings(workers=1)) as cluster:
        search = Search(job, place, parent, cluster, Reporter())
        cluster.preload("inlay.nas.pieces.library")
        outcomes = keeps_outcomes(search)
        for _ in spans_with_boundaries(search, ids, list(layers), outcomes):
            scratch = scratch_of(search, ids, outcomes)
            sums = search.run(
                [calibrate_piece(search, ids, layer, layer_variants(search, layer), scratch) for layer in layers]
            )
            pieces = [
                distill_piece(search, ids, layer, layer_variants(search, layer), sums_of(record))
                for layer, record in zip(layers, sums, strict=True)
            ]
            for number in range(-1, rounds):
                started = time.monotonic()
                for piece in pieces:
                    context = PieceContext(piece.seed, place.store, folder, 1, 1, 0, lambda *told: None)
                    piece.function(piece.arguments, context)
                bare = time.monotonic() - started
                for record in place.store.list("records/distill/"):
                    place.store.delete(record)
                started = time.monotonic()
                search.run(pieces)
                if number >= 0:  # the first round loads and compiles
                    times["bare"].append(bare)
                    times["pieces"].append(time.monotonic() - started)
    return {**times, "count": len(list(layers))}


def many(folder: Path, rounds: int) -> dict[str, Any]:
    """Twenty searches submitted at once: how they end, how long it takes, the most memory that all of it holds."""
    job = write_job(folder / "many.yaml", distill="4k", recover="4k", kinds=1)
    with services(folder) as environment:
        peak = PeakMemory()
        started = time.monotonic()
        names = [f"many-{number}" for number in range(JOBS)]
        for name in names:
            inlay(environment, "submit", job, "--id", name, "-w", folder / name)
        while True:
            listed = {entry["job_id"]: entry for entry in json.loads(inlay(environment, "list", "--json"))}
            if all(listed[name]["state"] in ("SUCCEEDED", "FAILED", "STOPPED") for name in names):
                break
            time.sleep(2)
        seconds = time.monotonic() - started
        right = [name for name in names if listed[name]["state"] == "SUCCEEDED"]
        found = [json.loads((folder / name / "evaluation.json").read_text()) for name in right]
        same = len({json.dumps(each["child"]["before_recover"]) for each in found}) == 1
        return {"seconds": seconds, "right": len(right), "jobs": JOBS, "same": same, "peak_gib": peak.stop()}


def listing(folder: Path, rounds: int) -> dict[str, Any]:
    """`inlay list` with a hundred real ended jobs: its wall time, and that of `inlay --version`, its start-up."""
    from inlay.cluster.jobs import JobServer

    with services(folder, "--jobs-at-once", "8") as environment:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(environment["HOME"]) / ".ray" / "auth_token")
        server = JobServer(
            json.loads((Path(environment["INLAY_SERVICES"]) / "services.json").read_text())["ray"]["url"]
        )
        for number in range(ENDED):
            server.submit(f"ended-{number}", "true", {}, {}, {})
        for number in range(ENDED):
            server.wait(f"ended-{number}", 600)
        times: dict[str, list[float]] = {"list": [], "start-up": []}
        for _ in range(rounds + 2):
            for name, words in (("list", ("list",)), ("start-up", ("--version",))):
                started = time.monotonic()
                said = inlay(environment, *words)
                times[name].append(time.monotonic() - started)
                assert name != "list" or said.count("SUCCEEDED") == ENDED, said
        return times


class PeakMemory:
    """Samples what the whole machine holds, which is at least what the services and jobs hold."""

    def __init__(self) -> None:
        self.most = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def stop(self) -> float:
        """The largest sample in GiB."""
        self.ended.set()
        self.thread.join()
        return self.most / 2**30

    def _sample(self) -> None:
        while not self.ended.wait(2):
            held = psutil.virtual_memory()
            self.most = max(self.most, held.total - held.available)


@contextmanager
def services(folder: Path, *options: str) -> Iterator[dict[str, str]]:
    """`inlay up` in an account of its own, and `inlay down`; the environment to reach it."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = kept | {"HOME": str(home), "INLAY_SERVICES": str(folder / "up"), "OMP_NUM_THREADS": "1"}
    environment["INLAY_MEASURED"] = str(folder / "measured")
    inlay(environment, "up", *options)
    try:
        yield environment
    finally:
        inlay(environment, "down")


def inlay(environment: dict[str, str], *words: str | Path) -> str:
    """The command as a process; what it printed."""
    command = [sys.executable, "-m", "inlay.nas.cli", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def write_texts(folder: Path) -> None:
    """Four fifths of the documents train, the rest judges."""
    (source,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    documents = source.read_text().split("<|endoftext|>\n")
    cut = len(documents) * 4 // 5
    for name, part in (("train.txt", documents[:cut]), ("held_out.txt", documents[cut:])):
        (folder / name).write_text("<|endoftext|>\n".join(part))


def write_job(path: Path, *, distill: str, recover: str, kinds: int) -> Path:
    """A search of stories260K with `kinds` alternatives for each subblock."""
    attention: list[Any] = [{"kv_heads": 2}, {"window": 32}, "linear", "no_op"]
    ffn: list[Any] = [{"width": 0.5}, {"width": 0.25}, "linear", "no_op"]
    values = {
        "parent": str(Path(os.environ["INLAY_PARENTS"]) / "stories260K"),
        "data": {
            "distill": {"path": "train.txt", "sequence_length": 128},
            "validate": {"path": "held_out.txt", "tokens": "4k"},
        },
        "space": {"attention": attention[:kinds], "ffn": ffn[:kinds]},
        "distill": {"tokens": distill},
        "score": {"pairs": 2},
        "solve": {"pool": 2, "corrections": 0},
        "recover": {"tokens": recover, "learning_rate": 1e-3, "probes": 2},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 1, "prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.9x"},
    }
    path.write_text(json.dumps(values))
    return path


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# What the service costs and carries", ""]
    lines += ["Written by `benchmarks/service.py`; the parent is stories260K.", ""]
    for part, tell in (("submit", tell_submit), ("overhead", tell_overhead), ("many", tell_many), ("list", tell_list)):
        if found := results.get(part):
            title, sentences = tell(found)
            lines += [f"## {title}", "", *sentences, "", found["footer"], ""]
    return "\n".join(lines)


def tell_submit(found: dict[str, Any]) -> tuple[str, list[str]]:
    """Submitted beside run here."""
    run, sent = (statistics.median(found[name]) for name in ("run", "submit"))
    limit = 1.1 * run + 15
    return "A submitted search beside `inlay run`", [
        f"Median of {len(found['run'])} in turns, new workspaces: `inlay run` {run:.1f} s, `inlay submit --wait`",
        f"{sent:.1f} s. At most 1.1 times and 15 s are wanted, {limit:.1f} s: {verdict(sent <= limit)}.",
    ]


def tell_overhead(found: dict[str, Any]) -> tuple[str, list[str]]:
    """Pieces beside the bare loop."""
    bare, pieces = (statistics.median(found[name]) for name in ("bare", "pieces"))
    ratios = sorted(b / a for a, b in zip(found["bare"], found["pieces"], strict=True))
    middle = statistics.median(ratios)
    return "Orchestration beside the bare loop", [
        f"{found['count']} distill pieces on one worker with one thread: the bare loop takes {bare:.2f} s, the same as",
        f"pieces {pieces:.2f} s; median of paired ratios {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}). At most",
        f"1.05 is wanted: {verdict(middle <= 1.05)}.",
    ]


def tell_many(found: dict[str, Any]) -> tuple[str, list[str]]:
    """Many jobs at once."""
    kept = found["right"] == found["jobs"] and found["same"] and found["peak_gib"] <= LARGEST_GIB
    same = "the same KL in all" if found["same"] else "DIFFERENT KL"
    return f"{found['jobs']} searches submitted at once", [
        f"{found['right']} ended right in {found['seconds']:.0f} s, {same}; the whole machine held at most",
        f"{found['peak_gib']:.1f} GiB. All, the same, within {LARGEST_GIB} GiB are wanted: {verdict(kept)}.",
    ]


def tell_list(found: dict[str, Any]) -> tuple[str, list[str]]:
    """A long list."""
    whole, start = (statistics.median(found[name]) for name in ("list", "start-up"))
    return f"`inlay list` with {ENDED} ended jobs", [
        f"Median {whole:.2f} s, start-up (`inlay --version`) {start:.2f} s. The answer within 1 s after that is",
        f"wanted: {whole - start:.2f} s, {verdict(whole - start <= 1)}.",
    ]


def verdict(holds: bool) -> str:
    """`kept` or `MISSED`."""
    return "kept" if holds else "MISSED"


if __name__ == "__main__":
    main()
