"""Rounds at equal tokens: one search under a budget, and several that tighten to it, each from the last one's child.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/rounds.py [--rounds 1 2] [--seeds 3] [--parameters 0.5x]

Every run has a workspace of its own, the same tokens in all, the same validation text and the same times of subblocks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import job_of, split_text

from inlay.nas.report.progress import Reporter
from inlay.nas.stages.rounds import run_rounds

MODELS = ("child", "uniform", "depth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="stories260K")
    parser.add_argument("--parameters", nargs="*", default=["0.7x", "0.5x"])
    parser.add_argument("--rounds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("rounds.search"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rounds.md")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    os.environ["INLAY_MEASURED"] = str((options.folder / "measured").absolute())
    split_text(options.folder)
    results = options.folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    for seed in range(options.seeds):
        for limit in options.parameters:
            for rounds in options.rounds:
                key = {"parent": options.parent, "parameters": limit, "rounds": rounds, "seed": seed}
                if any({name: row[name] for name in key} == key for row in rows):
                    continue
                job = job_of(options.parent, {"parameters": limit}, seed, options.folder)
                job = type(job).from_dict({**job.to_dict(), "rounds": rounds}, folder=options.folder)
                started = time.monotonic()
                found = run_rounds(job, options.folder / "-".join(map(str, key.values())), Reporter()).evaluation
                figures = {name: found[name]["kl_nats"] for name in MODELS}
                chosen = found[found["chosen"]]
                rows.append(
                    {
                        **key,
                        **figures,
                        "chosen": found["chosen"],
                        "kl_nats": chosen["kl_nats"],
                        "runtime_ratio": chosen["runtime_ratio"],
                        "seconds": time.monotonic() - started,
                        "tokens": {name: getattr(job, name).tokens for name in ("distill", "recover")},
                    }
                )
                results.write_text(json.dumps(rows))
                options.output.write_text(page(rows))


def page(rows: list[dict[str, Any]]) -> str:
    """The worst seed of each number of rounds, then every run."""
    tokens = rows[0]["tokens"]
    lines = [
        "# Rounds at equal tokens",
        "",
        "KL to the first parent in nats per token on the report text, of what is kept; lower is better. All have",
        f"{tokens['distill']:,} tokens a variant and {tokens['recover']:,} of recovery, shared out among their rounds.",
        "Written by `benchmarks/rounds.py`.",
        "",
        "| parent | parameters | rounds | seeds | worst KL | mean KL | mean seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for parent, limit, rounds in sorted({(row["parent"], row["parameters"], row["rounds"]) for row in rows}):
        own = [row for row in rows if (row["parent"], row["parameters"], row["rounds"]) == (parent, limit, rounds)]
        kls = [row["kl_nats"] for row in own]
        seconds = sum(row["seconds"] for row in own) / len(own)
        lines.append(
            f"| {parent} | {limit} | {rounds} | {len(own)} | {max(kls):.4f} | {sum(kls) / len(kls):.4f} "
            f"| {seconds:.0f} |"
        )
    lines += [
        "",
        "## Every run",
        "",
        "Baselines of later rounds start from the last round's parent.",
        "",
        "| parent | parameters | rounds | seed | child | uniform | depth | kept | runtime |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        told = " | ".join(f"{row[name]:.4f}" for name in MODELS)
        lines.append(
            f"| {row['parent']} | {row['parameters']} | {row['rounds']} | {row['seed']} | {told} | {row['chosen']} "
            f"| {row['runtime_ratio']:.3f}x |"
        )
    return "\n".join([*lines, "", footer(), ""])


if __name__ == "__main__":
    main()
