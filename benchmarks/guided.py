"""Guided distillation: what it leaves out, and whether the child is as good as with every variant trained in full.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/guided.py [--parent pystdlib] [--budget runtime=0.6x]

For each parent all variants are trained in full and scored; then guided, once for each budget, in a workspace of its
own, on the same costs. Under each budget both libraries give a pool, of which the one of the least true KL on the score
text is the child, as it is assembled; it is judged on the report text. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import split_text

import inlay
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.distill import build_library, library_of, variant_tokens
from inlay.nas.stages.guided import Trained, train_guided
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.run import open_job_parent
from inlay.nas.stages.scoring import score_all
from inlay.nas.tables.architecture import Blocks, architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.workspace import Workspace
from inlay.solver import solve

SETTINGS: dict[str, dict[str, Any]] = {
    "stories260K": {"kv_heads": [2, 1], "distill": 100_000},
    "stories3M": {"kv_heads": [1], "distill": 50_000},
    "pystdlib": {"kv_heads": [1], "distill": 50_000},
}
"""The parents with their alternatives and tokens a variant."""


def job_of(parent: str, budget: str, folder: Path) -> inlay.Job:
    """The job of one run."""
    own, shipped = SETTINGS[parent], parent == "pystdlib"
    names = ("train", "held_out")
    train, held_out = (f"inlay:pystdlib/{name}" if shipped else str(folder / f"{name}.txt") for name in names)
    return inlay.Job.from_dict(
        {
            "parent": "inlay:pystdlib" if shipped else str(Path(os.environ["INLAY_PARENTS"]) / parent),
            "data": {
                "distill": {"path": train, "sequence_length": 256},
                "validate": {"path": held_out, "tokens": 8_000},
            },
            "space": {
                "attention": [*({"kv_heads": k} for k in own["kv_heads"]), "linear", "no_op"],
                "ffn": [{"width": 0.75}, {"width": 0.5}, {"width": 0.25}, "linear", "no_op"],
            },
            "distill": {"tokens": own["distill"], "batch_size": 2, "guided": True},
            "recover": {"tokens": 0},
            "hardware": {"scenarios": [{"name": "chat", "batch_size": 4, "prefill": 128, "generate": 32}]},
            "budget": dict([budget.split("=")]),
        },
        folder=folder,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=list(SETTINGS))
    parser.add_argument("--budget", nargs="*", default=["runtime=0.6x", "parameters=0.7x"])
    parser.add_argument("--results", type=Path, default=Path("guided.json"), help="rows of this and of earlier runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "guided.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else []
    for parent in options.parent:
        with tempfile.TemporaryDirectory() as folder:
            split_text(Path(folder))
            for row in compared(parent, options.budget, Path(folder)):
                rows.append(row)
                options.results.write_text(json.dumps(rows))
                options.output.write_text(page(rows))
    options.output.write_text(page(rows))
    print(page(rows))


def compared(parent: str, budgets: list[str], folder: Path) -> Any:
    """Rows of one parent: under each budget in full and guided."""
    search, texts = opened(job_of(parent, budgets[0], folder), folder / "full.search")
    costs = CostTable(cost_rows(search))
    begin = time.process_time()
    full = Trained(build_library(search, texts.distill))
    seconds = time.process_time() - begin
    scores = ScoreTable.of(score_all(search, texts, library_of(full.records)).rows)
    told = {"parent": parent, "layers": search.parent.shape.num_layers, "tokens_each": SETTINGS[parent]["distill"]}
    for budget in budgets:
        job = job_of(parent, budget, folder)
        own = {**told, "budget": budget, "distill": "in full", "cpu_seconds": seconds}
        best, row = judged(search, job, texts, full, scores, costs)
        yield {**own, **row, "same": True}
        guided, held = opened(job, folder / f"{budget}.search")
        begin = time.process_time()
        trained = train_guided(guided, held, costs)
        own = {**told, "budget": budget, "distill": "guided", "cpu_seconds": time.process_time() - begin}
        found = ScoreTable.of(score_all(guided, held, library_of(trained.records)).rows)
        other, row = judged(guided, job, held, trained, found, costs)
        yield {**own, **row, "same": other == best, "note": trained.note}


def opened(job: inlay.Job, folder: Path) -> tuple[SmallSearch, Texts]:
    """A search in this process, with its texts."""
    nobody: Any = None
    search = SmallSearch(job, Workspace(folder), open_job_parent(job), nobody, Reporter())
    return search, store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)


def judged(
    search: SmallSearch, job: inlay.Job, texts: Texts, trained: Trained, scores: ScoreTable, costs: CostTable
) -> tuple[Blocks, dict[str, Any]]:
    """The program's best architecture; what training took, and the best of the pool by true KL."""
    tokens = {each.name: each.batch_size * each.generate for each in job.hardware.scenarios}
    problem = Tables(scores, costs, tokens).problem(job.budget)
    best = solve(problem, time_limit=math.inf)[0]
    pool = solve_pool(problem, job.solve.pool, job.solve.min_difference, job.solve.time_limit)
    architectures = [architecture_of(each.labels) for each in pool]
    library = library_of(trained.records)
    true = true_scores(search, texts.score, library, architectures)
    place = min(range(len(true)), key=lambda place: true[place].kl_nats)
    (reported,) = true_scores(search, texts.report, library, [architectures[place]])
    variants = sum(len(held) for held in library.digests.values())
    return architecture_of(best.labels), {
        "variants": variants,
        "in_full": variants - len(trained.left),
        "tokens": variant_tokens(trained.records, search.job),
        "predicted": (best.objective or 0) / 1e9,
        "kl": true[place].kl_nats,
        "report_kl": reported.kl_nats,
        "report_error": reported.standard_error,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Full and guided side by side."""
    lines = [
        "# Guided distillation beside distillation in full",
        "",
        "*Tokens* are those that variants were trained on, as a share of training all in full; CPU seconds are those",
        "of distill, the scores that guide it included; *predicted* is the KL of the program's best answer for the",
        "scores of each library, and *same* whether both have the same architecture there; then the true KL of the",
        "child on the score text and on the report text, in nats per token. Nothing is recovered.",
        "",
        "| parent | budget | distill | tokens | in full | CPU s | predicted | same | KL | KL, report text |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        error = "" if row["report_error"] is None else f" ± {row['report_error']:.4f}"
        lines.append(
            f"| {row['parent']} | {row['budget']} | {row['distill']} "
            f"| {row['tokens'] / row['variants'] / row['tokens_each']:.2f} | {row['in_full']} of {row['variants']} "
            f"| {row['cpu_seconds']:.0f} | {row['predicted']:.4f} | {'yes' if row['same'] else 'no'} "
            f"| {row['kl']:.4f} | {row['report_kl']:.4f}{error} |"
        )
    each = ", ".join(f"{row['tokens_each']:,} on {row['parent']}" for row in rows if row["budget"] == rows[0]["budget"])
    lines += ["", f"Tokens a variant: {', '.join(dict.fromkeys(each.split(', ')))}.", ""]
    return "\n".join([*lines, f"Written by `benchmarks/guided.py`. {footer()}", ""])


if __name__ == "__main__":
    main()
