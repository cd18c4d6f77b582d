"""Whole searches on pretrained parents: the child beside both baselines, three seeds, two budgets.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/searches.py [--parent stories260K] [--budget parameters=0.7x]
    ... python benchmarks/searches.py --parent stories3M --budget parameters=0.6x --recover 300000 \\
        --folder longer.search --output benchmarks/results/longer.md

Each seed has one workspace a parent; the second budget reuses its library and scores. The worst seed is quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer

import inlay
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import run_job

BUDGETS = ["runtime=0.6x", "parameters=0.7x"]
MODELS = ("child", "uniform", "depth")
SETTINGS: dict[str, dict[str, Any]] = {
    "stories260K": {"kv_heads": [2, 1], "distill": 100_000, "recover": 200_000, "validate": 16_000},
    "stories3M": {"kv_heads": [1], "distill": 60_000, "recover": 100_000, "validate": 16_000},
}


def job_of(parent: str, budget: dict[str, str], seed: int, folder: Path, *, recover: int | None = None) -> inlay.Job:
    """The job of one run; the text is cut so that validation documents are never trained on."""
    own = SETTINGS[parent]
    return inlay.Job.from_dict(
        {
            "parent": str(Path(os.environ["INLAY_PARENTS"]) / parent),
            "data": {
                "distill": {"path": str(folder / "train.txt"), "sequence_length": 256},
                "validate": {"path": str(folder / "held_out.txt"), "tokens": own["validate"]},
            },
            "space": {
                "attention": [*({"kv_heads": k} for k in own["kv_heads"]), {"window": 64}, "linear", "no_op"],
                "ffn": [{"width": 0.75}, {"width": 0.5}, {"width": 0.25}, "linear", "no_op"],
            },
            "distill": {"tokens": own["distill"]},
            "recover": {"tokens": recover or own["recover"]},
            "hardware": {"scenarios": [{"name": "chat", "batch_size": 4, "prefill": 128, "generate": 32}]},
            "budget": budget,
            "tracking": {"experiment": "searches", "uri": f"sqlite:///{folder / 'mlflow.db'}"},
            "cluster": {"max_workers": 2},
            "seed": seed,
        },
        folder=folder,
    )


def split_text(folder: Path) -> None:
    """Nine tenths of the documents train, the last tenth judges."""
    (source,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    documents = source.read_text().split("<|endoftext|>\n")
    cut = len(documents) * 9 // 10
    for name, part in (("train.txt", documents[:cut]), ("held_out.txt", documents[cut:])):
        (folder / name).write_text("<|endoftext|>\n".join(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=list(SETTINGS))
    parser.add_argument("--budget", nargs="*", default=BUDGETS)
    parser.add_argument("--recover", type=int, help="tokens of recovery in place of the parent's own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("searches.search"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/searches.md"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    split_text(options.folder)
    results = options.folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    for parent in options.parent:
        for seed in range(options.seeds):
            # Each seed measures for itself, so that seeds tell how much the times decide.
            os.environ["INLAY_MEASURED"] = str((options.folder / f"{parent}-{seed}.measured").absolute())
            for budget in (dict([each.split("=")]) for each in options.budget):
                job = job_of(parent, budget, seed, options.folder, recover=options.recover)
                place = options.folder / f"{parent}-{seed}"
                evaluation = run_job(job, place, Reporter()).evaluation
                key = {"parent": parent, "budget": budget, "seed": seed}
                rows = [row for row in rows if {name: row[name] for name in key} != key]
                told = {name: evaluation[name] for name in MODELS}
                rows.append({**key, **told, "chosen": evaluation["chosen"], "recover": job.recover.tokens})
                results.write_text(json.dumps(rows))
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(page(rows))


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown: per parent and budget the worst seed, then every run."""
    tokens = {row["parent"]: f"{row['recover']:,} on {row['parent']}" for row in rows}
    lines = [
        "# Searches on pretrained parents",
        "",
        "KL to the parent in nats per token on the report text, lower is better. A run's *margin* is the better",
        "baseline's KL over the child's; each row quotes the seed with the smallest margin after recovery. Runtime is",
        "measured, relative to the parent, in turns with it. Tokens of recovery: " + ", ".join(tokens.values()) + ".",
        "Written by `benchmarks/searches.py`.",
        "",
        "| parent | budget | seeds | | child | uniform | depth | margin |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((row["parent"], json.dumps(row["budget"])) for row in rows)
    for parent, budget in groups:
        runs = [row for row in rows if row["parent"] == parent and json.dumps(row["budget"]) == budget]
        worst = min(runs, key=margin)
        text = ", ".join(f"{name} {value}" for name, value in worst["budget"].items())
        for when in ("before", "after"):
            told = " | ".join(f"{kl(worst[name], when):.4f}" for name in MODELS)
            least = min(margin(row, when) for row in runs)
            lines.append(f"| {parent} | {text} | {len(runs)} | {when} recovery | {told} | {least:.2f} |")
        told = " | ".join(f"{worst[name]['runtime_ratio']:.3f}" for name in MODELS)
        lines.append(f"| {parent} | {text} | | runtime | {told} | |")
        parameters = " | ".join(f"{worst[name]['parameters']:,}" for name in MODELS)
        lines.append(f"| {parent} | {text} | | parameters | {parameters} | |")
    lines += [
        "",
        "## Every run",
        "",
        "| parent | budget | seed | child before | child | uniform | depth | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        text = ", ".join(f"{name} {value}" for name, value in row["budget"].items())
        told = " | ".join(f"{kl(row[name], 'after'):.4f}" for name in MODELS)
        before = kl(row["child"], "before")
        lines.append(f"| {row['parent']} | {text} | {row['seed']} | {before:.4f} | {told} | {row['chosen']} |")
    return "\n".join([*lines, "", footer(), ""])


def kl(model: dict[str, Any], when: str) -> float:
    """KL before or after recovery."""
    return float(model["before_recover"] if when == "before" else model["kl_nats"])


def margin(row: dict[str, Any], when: str = "after") -> float:
    """The better baseline's KL over the child's; above 1 the child wins."""
    return min(kl(row[name], when) for name in ("uniform", "depth")) / kl(row["child"], when)


if __name__ == "__main__":
    main()
