"""What other programs on the machine do to the times of one thread: the demo's parent beside four children of it.

    python benchmarks/timing_under_load.py [--output benchmarks/results/timing_under_load.md]

Each load is two processes that do nothing else: one that only counts, or one that walks through memory larger than any
cache. Models are timed as `inlay run` times them, by the thread's own CPU time and, beside it, by the wall clock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer

from inlay.nas.embedded import embedded_parent
from inlay.nas.engines.eager import random_model, rounds_of
from inlay.nas.engines.timing import Workload, relative_error, runtimes
from inlay.nas.families import open_parent
from inlay.nas.modeling.no_op_inlay import ABSENT

COUNTING = "while True: pass"
WALKING = "import torch; torch.set_num_threads(1); a = torch.zeros(1 << 26)\nwhile True: a.add_(1)"
LOADS = {
    "none": [],
    "one that counts": [COUNTING],
    "two that count": [COUNTING] * 2,
    "one that walks memory": [WALKING],
    "two that walk memory": [WALKING] * 2,
}
WORKLOAD = Workload(batch_size=4, prefill=128, generate=32, threads=1)
SETTLING_SECONDS = 3.0


@contextmanager
def busy(programs: list[str]) -> Iterator[None]:
    """Python programs that run meanwhile, each in a session of its own as a user's other programs are."""
    running = [subprocess.Popen([sys.executable, "-c", text], start_new_session=True) for text in programs]
    time.sleep(SETTLING_SECONDS if running else 0)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def models() -> dict[str, Any]:
    """The demo's parent, the same again, and children of it, with random weights."""
    config = open_parent(embedded_parent("pystdlib")).config
    own = config.blocks
    narrow = {"kind": "gated", "width": config.intermediate_size // 4}
    blocks = {
        "parent": own,
        "parent again": own,
        "a quarter of the ffn in half": [{**b, "ffn": narrow} if i % 2 else b for i, b in enumerate(own)],
        "no attention in half": [{**b, "attention": ABSENT} if i % 2 else b for i, b in enumerate(own)],
        "neither in half": [{"attention": ABSENT, "ffn": ABSENT} if i % 2 else b for i, b in enumerate(own)],
    }
    made: dict[str, Any] = {}
    for name, chosen in blocks.items():
        made[name] = random_model(
            config.with_blocks(chosen), torch.float32, torch.device("cpu"), next(iter(made.values()), None)
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/timing_under_load.md"))
    options = parser.parse_args()
    held = models()
    lines = [
        "# Times of one thread on a busy machine",
        "",
        "Runtime relative to the parent of the demo (batch 4, 128 tokens read and 32 generated), ± its standard error,",
        "by the thread's own CPU time. `rounds` is how many were taken until every error was 1 %, 15 at most; CPU and",
        "wall are seconds for all five models. Written by `benchmarks/timing_under_load.py`.",
        "",
        f"| beside | {' | '.join(list(held)[1:])} | parent, ms | rounds | CPU, s | wall, s |",
        f"|---|{'---:|' * (len(held) + 3)}",
    ]
    for load, programs in LOADS.items():
        with busy(programs):
            begun, cpu = time.monotonic(), time.thread_time()
            rounds = rounds_of(held, WORKLOAD, torch.device("cpu"))
            cpu, wall = time.thread_time() - cpu, time.monotonic() - begun
        times = {name: runtimes(own, WORKLOAD) for name, own in rounds.items()}
        cells = []
        for name in list(held)[1:]:
            ratios = [a / b for a, b in zip(times[name], times["parent"], strict=True)]
            cells.append(f"{median(ratios):.3f} ± {median(ratios) * relative_error(ratios):.3f}")
        parent = f"{median(times['parent']) / 1e6:.0f} | {len(times['parent'])} | {cpu:.1f} | {wall:.0f}"
        lines.append(f"| {load} | {' | '.join(cells)} | {parent} |")
        print(lines[-1], flush=True)
    options.output.write_text("\n".join([*lines, "", footer(), ""]))


if __name__ == "__main__":
    main()
