"""Guided distillation: what it leaves out, and whether the kept child is as good as with every variant trained in full.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/guided.py [--parent pystdlib] [--budget runtime=0.6x]

Two whole searches without recovery a row, on the same times of subblocks: all variants on all tokens, and guided. The
program's own figure is told for the scores of each, and the true KL of what each has kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import split_text

import inlay
from inlay.nas.loop.solving import load_problem
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import run_job
from inlay.nas.workspace import Workspace
from inlay.solver import solve

SETTINGS: dict[str, dict[str, Any]] = {
    "stories260K": {"kv_heads": [2, 1], "distill": 200_000},
    "stories3M": {"kv_heads": [1], "distill": 100_000},
    "pystdlib": {"kv_heads": [1], "distill": 100_000},
}
"""The parents with their alternatives and tokens a variant."""


def job_of(parent: str, budget: dict[str, str], guided: bool, folder: Path) -> inlay.Job:
    """The job of one run."""
    own, shipped = SETTINGS[parent], parent == "pystdlib"
    names = ("train", "held_out")
    train, held_out = (f"inlay:pystdlib/{name}" if shipped else str(folder / f"{name}.txt") for name in names)
    return inlay.Job.from_dict(
        {
            "parent": "inlay:pystdlib" if shipped else str(Path(os.environ["INLAY_PARENTS"]) / parent),
            "data": {
                "distill": {"path": train, "sequence_length": 256},
                "validate": {"path": held_out, "tokens": 12_000},
            },
            "space": {
                "attention": [*({"kv_heads": k} for k in own["kv_heads"]), "linear", "no_op"],
                "ffn": [{"width": 0.75}, {"width": 0.5}, {"width": 0.25}, "linear", "no_op"],
            },
            "distill": {"tokens": own["distill"], "batch_size": 4, "guided": guided},
            "recover": {"tokens": 0},
            "hardware": {"scenarios": [{"name": "chat", "batch_size": 4, "prefill": 128, "generate": 32}]},
            "budget": budget,
            "tracking": {"experiment": "guided", "uri": f"sqlite:///{folder / 'mlflow.db'}"},
            "cluster": {"max_workers": 1},
        },
        folder=folder,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=list(SETTINGS))
    parser.add_argument("--budget", nargs="*", default=["runtime=0.6x"])
    parser.add_argument("--folder", type=Path, default=Path("guided.search"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "guided.md")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    os.environ["INLAY_MEASURED"] = str((options.folder / "measured").absolute())
    split_text(options.folder)
    results = options.folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    for parent in options.parent:
        for budget in options.budget:
            for guided in (False, True):
                key = {"parent": parent, "budget": budget, "guided": guided}
                if any({name: row[name] for name in key} == key for row in rows):
                    continue
                # What is trained in full does not depend on the budget; what is trained in part does.
                place = options.folder / (f"{parent}-{budget}" if guided else parent)
                job = job_of(parent, dict([budget.split("=")]), guided, options.folder)
                rows.append({**key, **figures(job, place, rows)})
                results.write_text(json.dumps(rows))
                options.output.write_text(page(rows))
    print(page(rows))


def figures(job: inlay.Job, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs one search; what it took and what came of it."""
    evaluation = run_job(job, folder, Reporter()).evaluation
    place = Workspace(folder)
    problem, _ = load_problem(place, job.budget)
    losses, run = place.read_table("losses"), place.read_json("run.json")
    parent = Path(job.parent).name.removeprefix("inlay:")
    before = [row for row in rows if row["parent"] == parent and not row["guided"] and not job.distill.guided]
    kept = evaluation[str(evaluation["chosen"])]
    return {
        "tokens": sum(row["tokens"] for row in losses),
        "variants": len(losses),
        "in_full": len(losses) - sum(bool(row["reason"]) for row in losses),
        # A second budget on the same library trains nothing.
        "seconds": before[0]["seconds"]
        if before
        else sum(stage["seconds"] for stage in run["stages"] if stage["name"] == "distill"),
        "predicted": (solve(problem, time_limit=math.inf)[0].objective or 0) / 1e9,
        "score_kl": evaluation["score_kl_nats"][evaluation["chosen"]],
        "kl": kept["kl_nats"],
        "standard_error": kept["standard_error"],
        "uniform": evaluation["uniform"]["kl_nats"],
        "chosen": evaluation["chosen"],
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Full and guided side by side."""
    lines = [
        "# Guided distillation beside distillation in full",
        "",
        "Whole searches without recovery. *Tokens* are those that variants were trained on, as a share of training all",
        "in full; *predicted* is the KL of the program's best answer on each search's own score table; then comes the",
        "true KL of what was kept, on the score text and on the report text, and that of the uniform baseline.",
        "All KL in nats per token. Seconds of guided distillation include the scores that decide.",
        "",
        "| parent | budget | distill | tokens | in full | seconds | predicted | kept, score text | kept, report text "
        "| uniform |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        whole = row["variants"] * SETTINGS[row["parent"]]["distill"]
        lines.append(
            f"| {row['parent']} | {row['budget']} | {'guided' if row['guided'] else 'in full'} "
            f"| {row['tokens'] / whole:.2f} | {row['in_full']} of {row['variants']} | {row['seconds']:.0f} "
            f"| {row['predicted']:.4f} | {row['score_kl']:.4f} | {row['kl']:.4f} ± {row['standard_error']:.4f} "
            f"({row['chosen']}) | {row['uniform']:.4f} |"
        )
    return "\n".join([*lines, "", f"Written by `benchmarks/guided.py`. {footer()}", ""])


if __name__ == "__main__":
    main()
