"""The distill stage on one and on two one-thread workers, beside the plain loop on two threads.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/distill.py [--rounds 3] [--output benchmarks/results/distill.md]

stories3M, 5 attention and 5 ffn alternatives. Variant-tokens are tokens times variants trained by gradient; the wall
time of ours is that of the whole stage: boundaries, calibration, training, commits; workers have their imports behind
them, as in a search.
The three take turns; the medians' ratios are quoted. The records of one and of two workers must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import split_text

import inlay
from inlay.cluster.runtime import ClusterSettings, connect
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.distill import build_library
from inlay.nas.stages.run import open_job_parent
from inlay.nas.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/distill.md"))
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    texts = Path(scratch.name)
    split_text(texts)
    parent = Path(os.environ["INLAY_PARENTS"]) / options.parent
    rates: dict[str, list[float]] = {"plain": [], "one": [], "two": []}
    identities = set()
    for _ in range(options.rounds):
        rates["plain"].append(plain(parent, texts / "train.txt", options.tokens))
        for name, workers in (("one", 1), ("two", 2)):
            rate, identity = stage(parent, texts, options.tokens, workers)
            rates[name].append(rate)
            identities.add(identity)
        print({name: [round(rate) for rate in found] for name, found in rates.items()}, flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    lines = [
        "# The distill stage against a plain loop",
        "",
        f"{options.parent}, 5 attention and 5 ffn alternatives, {options.tokens:,} tokens, "
        f"{options.rounds} rounds in turns.",
        "",
        "| | variant-tokens a second, median | least | most |",
        "|---|---|---|---|",
        *(
            f"| {title} | {medians[name]:,.0f} | {min(rates[name]):,.0f} | {max(rates[name]):,.0f} |"
            for name, title in (("plain", "plain loop, two threads"), ("one", "one worker"), ("two", "two workers"))
        ),
        "",
        f"- two workers over the plain loop: {paired(rates['two'], rates['plain']):.2f} (median of paired ratios)",
        f"- two workers over one: {paired(rates['two'], rates['one']):.2f}",
        f"- one worker over the plain loop: {paired(rates['one'], rates['plain']):.2f}",
        f"- records equal for one and two workers and in all rounds: {'yes' if len(identities) == 1 else 'NO'}",
        "",
        f"Written by `benchmarks/distill.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def paired(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def plain(parent: Path, text: Path, tokens: int) -> float:
    """Variant-tokens a second of the plain loop, in a process of its own."""
    script = Path(__file__).with_name("plain_loop.py")
    command = [sys.executable, script, "--parent", parent, "--text", text, "--tokens", str(tokens)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return float(told["variant_tokens_per_second"])


def stage(parent: Path, texts: Path, tokens: int, workers: int) -> tuple[float, str]:
    """Variant-tokens a second of the stage on this many workers, and what its records hold."""
    job = inlay.Job.from_dict(
        {
            "parent": str(parent),
            "data": {
                "distill": {"path": str(texts / "train.txt")},
                "validate": {"path": str(texts / "held_out.txt"), "tokens": 4096},
            },
            "space": {
                "attention": [{"kv_heads": 1}, {"window": 128}, {"window": 64}, "linear", "no_op"],
                "ffn": [{"width": 384}, {"width": 256}, {"width": 128}, "linear", "no_op"],
            },
            # The loop knows one rate: the work must be the same.
            "distill": {"tokens": tokens, "learning_rate": 1e-3, "rate": "pinned"},
            "recover": {"tokens": tokens},
            "budget": {"runtime": "0.6x"},
            "cluster": {"max_workers": workers},
        }
    )
    with tempfile.TemporaryDirectory() as folder, connect(ClusterSettings(workers=workers)) as cluster:
        opened = open_job_parent(job)
        place = Workspace(Path(folder) / "distill.search")
        texts = store_texts(pack_texts(job, opened.tokenizer()), place)
        cluster.start()
        warm(cluster)
        start = time.monotonic()
        records = build_library(Search(job, place, opened, cluster, Reporter(sys.stderr)), texts.distill)
        seconds = time.monotonic() - start
    trained = sum(len(record.values["variants"]) for record in records)
    identity = json.dumps([record.identity() for record in records], sort_keys=True)
    return trained * tokens / seconds, identity


def warm(cluster: Any) -> None:
    """Waits until every worker has imported what the stage needs, as a search's earlier stages do."""
    cluster.preload("inlay.nas.pieces.library", "inlay.nas.pieces.comparison")
    time.sleep(15)


if __name__ == "__main__":
    main()
