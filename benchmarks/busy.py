"""The demo's search on a quiet machine and beside two busy programs: is the child as good, and how long does it take?

    python benchmarks/busy.py [--runs 3] [--job FILE] [--output benchmarks/results/busy.md]

Every search has a workspace of its own, so that nothing of one is found by another. Run it on a machine that does
nothing else. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from timing_under_load import COUNTING, busy

INLAY = [sys.executable, "-m", "inlay.nas.cli"]
BUSY_PROGRAMS = 2
KL_WITHIN = 0.10
SLOWER_AT_MOST = 2.2


@dataclass(frozen=True)
class Run:
    """One search: what it kept, and how long it took.

    Args:
        seconds: wall clock of `inlay run`, start and end of Ray included.
        measuring: seconds of the stages `measure` and `evaluate`.
        kl_nats: of the child after recovery, on the report text.
        chosen: `child`, or the baseline that ended better.
        child: id of the kept architecture.
        speed_up, error: the child's against its parent, and its standard error.
    """

    name: str
    seconds: float
    measuring: float
    kl_nats: float
    chosen: str
    child: str
    speed_up: float
    error: float


def search(name: str, job: Path, folder: Path, programs: list[str]) -> Run:
    """Runs a job from nothing beside these programs."""
    place = folder / f"{name.replace(' ', '-')}.search"
    # Each search measures for itself: what the machine keeps would be another's times.
    environment = os.environ | {"INLAY_MEASURED": str(place.with_suffix(".measured"))}
    with busy(programs):
        begun = time.monotonic()
        command = [*INLAY, "run", str(job), "-w", str(place)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        seconds = time.monotonic() - begun
    evaluation = json.loads((place / "evaluation.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in json.loads((place / "run.json").read_text())["stages"]}
    child = evaluation["child"]
    ratio = child["runtime_ratio"]
    return Run(
        name,
        seconds,
        stages["measure"] + stages["evaluate"],
        child["kl_nats"],
        evaluation["chosen"],
        json.loads((place / "solution.json").read_text())["id"],
        1 / ratio,
        child["runtime_ratio_error"] / ratio**2,
    )


def checks(quiet: Run, others: list[Run]) -> list[tuple[str, bool]]:
    """What was promised of the busy runs, and whether it holds of all."""
    kl = max(abs(run.kl_nats / quiet.kl_nats - 1) for run in others)
    slower = max(run.seconds / quiet.seconds for run in others)
    return [
        (f"recovered KL within {100 * KL_WITHIN:.0f} % of the quiet run's: {100 * kl:.1f} % at most", kl <= KL_WITHIN),
        (f"wall time at most {SLOWER_AT_MOST} times the quiet run's: {slower:.2f} at most", slower <= SLOWER_AT_MOST),
    ]


def page(runs: list[Run], told: list[tuple[str, bool]]) -> str:
    """The runs as Markdown."""
    lines = [
        "# The demo's search on a busy machine",
        "",
        f"`inlay init --demo`'s job, each run from nothing: once alone, then beside {BUSY_PROGRAMS} programs that only",
        "count. Measuring is the stages `measure` and `evaluate`. Written by `benchmarks/busy.py`.",
        "",
        "| run | wall, s | of it measuring, s | kept child | its recovered KL | what the user gets | speed-up |",
        "|---|---:|---:|---|---:|---|---:|",
    ]
    lines += [
        f"| {run.name} | {run.seconds:.0f} | {run.measuring:.0f} | {run.child} | {run.kl_nats:.4f} | {run.chosen} "
        f"| {run.speed_up:.2f} ± {run.error:.2f} |"
        for run in runs
    ]
    lines += ["", *(f"- {'holds' if holds else 'FAILS'}: {text}" for text, holds in told), "", footer(), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs beside the busy programs")
    parser.add_argument("--job", type=Path, help="another job than the demo's")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/busy.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        job = options.job.absolute() if options.job else folder / "demo.yaml"
        if not options.job:
            subprocess.run([*INLAY, "init", "--demo", str(job)], check=True, stdout=subprocess.DEVNULL)
        runs = [search("quiet", job, folder, [])]
        for number in range(options.runs):
            runs.append(search(f"busy {number + 1}", job, folder, [COUNTING] * BUSY_PROGRAMS))
            told = checks(runs[0], runs[1:])
            options.output.write_text(page(runs, told))
    print(options.output.read_text())
    return 0 if all(holds for _, holds in told) else 1


if __name__ == "__main__":
    sys.exit(main())
