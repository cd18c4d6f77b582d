"""Formats that a search chose against llama.cpp's own presets, at equal bytes and at equal KL; and its estimates.

    python benchmarks/precision.py WORKSPACE [WORKSPACE ...] [--output results/precision.md]

A workspace is that of a finished search for formats alone, without training, in llama.cpp: docs/laptop.md has the
commands. Every number is KL to the parent on its report text, in nats a token, of the weights that the file has.

The page keeps the sections of parents that are not among the workspaces.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from machine import footer

from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import load_tables
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.solutions import inputs_of_workspace, job_of
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks, architecture_of
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.workspace import Workspace
from inlay.solver import Limit, solve

LESS = 0.85
"""Of a preset's bytes: what should do for its KL."""
CHECKED = 24
"""Blocks whose true KL is compared with their estimates."""
MOST_SCORED = 200
"""Blocks above which a search is not scored anew in full."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=None)
    chosen = parser.parse_args()
    found = sections_of(chosen.output.read_text() if chosen.output is not None and chosen.output.exists() else "")
    for folder in chosen.workspaces:
        name, lines = section(Workspace(folder))
        found[name] = "\n".join(lines)
        print(f"## {name}\n\n{found[name]}\n", flush=True)
    if chosen.output is not None:
        head = "# Formats: a search against llama.cpp's presets\n\n" + str(__doc__).split("\n\n")[2].strip()
        chosen.output.write_text("\n\n".join([head, *(f"## {name}\n\n{text}" for name, text in found.items())]) + "\n")


def sections_of(page: str) -> dict[str, str]:
    """What a page that this script wrote has below each heading."""
    parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def section(place: Workspace) -> tuple[str, list[str]]:
    job, parent = job_of(place)
    nobody: Any = None
    search = SmallSearch(job, place, parent, nobody, Reporter(), inputs=inputs_of_workspace(place))
    run = place.read_json("run.json")
    seconds = sum(stage["seconds"] for stage in run["stages"])
    lines = [f"`inlay run` took {seconds / 60:.1f} minutes; {told_of(job)}.", "", *against_presets(search), ""]
    lines += [estimates(search), ""]
    if len(place.read_table("scores")) <= MOST_SCORED:
        lines += [full_scoring(search), ""]
    return Path(job.parent).stem.removeprefix("inlay:"), [*lines, footer()]


def told_of(job: Job) -> str:
    formats = ", ".join(job.space.formats.choices)
    return f"formats {formats} beside {job.hardware.format}, {job.data.validate.tokens:,} tokens judge"


def against_presets(search: SmallSearch) -> list[str]:
    place = search.workspace
    presets = place.read_json("evaluation.json")["presets"]
    found = {
        name: [solved(place, own["weights_bytes"] * share) for share in (1, LESS)] for name, own in presets.items()
    }
    wanted = [architecture for pair in found.values() for architecture in pair if architecture is not None]
    kl = quality(search, "report", wanted)
    lines = [
        f"| preset | MB | its KL | search at its bytes | of its KL | search at {LESS} of its bytes | of its KL |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in presets.items():
        same, less = found[name]
        cells = [name, f"{own['weights_bytes'] / 1e6:.1f}", f"{own['kl_nats']:.4f}"]
        cells += [*_beside(kl, same, own["kl_nats"]), *_beside(kl, less, own["kl_nats"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _beside(kl: dict[Blocks, Comparison], architecture: Blocks | None, of: float) -> list[str]:
    if architecture is None:
        return ["out of reach", ""]
    return [f"{kl[architecture].kl_nats:.4f}", f"{kl[architecture].kl_nats / of:.2f}"]


def solved(place: Workspace, weights_bytes: float, scores: ScoreTable | None = None) -> Blocks | None:
    """The best architecture of so many bytes, by the tables that the search left or by other scores; None where there
    is none."""
    tables = load_tables(place)
    problem = replace(tables, scores=scores or tables.scores).problem([])
    problem = problem.with_limits(Limit("weights", upper=int(weights_bytes)))
    (best,) = solve(problem, time_limit=30.0)
    return architecture_of(best.labels) if best.status in ("optimal", "feasible") else None


def quality(search: SmallSearch, text: str, architectures: Sequence[Blocks]) -> dict[Blocks, Comparison]:
    stored = search.workspace.read_json("texts.json")[text]
    ids = Ids(stored["digest"], (stored["shape"][0], stored["shape"][1]))
    distinct = list(dict.fromkeys(architectures))
    return dict(zip(distinct, true_scores(search, ids, Library({}), distinct), strict=True))


def full_scoring(search: SmallSearch) -> str:
    """What is chosen at every preset's bytes by estimates and by the true KL of every block, and what each takes."""
    place = search.workspace
    rows = place.read_table("scores")
    blocks = [row for row in rows if row["layer"] >= 0]
    changed = replaced(search, blocks)
    began = time.process_time()
    kl = quality(search, "score", changed)
    full_seconds = time.process_time() - began
    scored = {id(row): {**row, "kl_nats": kl[each].kl_nats} for row, each in zip(blocks, changed, strict=True)}
    full = ScoreTable.of([scored.get(id(row), row) for row in rows])
    sizes = {name: own["weights_bytes"] for name, own in place.read_json("evaluation.json")["presets"].items()}
    pairs = {name: (solved(place, size), solved(place, size, full)) for name, size in sizes.items()}
    both = {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours is not None and theirs is not None}
    true = quality(search, "report", [architecture for pair in both.values() for architecture in pair])
    ratios = {name: true[ours].kl_nats / true[theirs].kl_nats for name, (ours, theirs) in both.items()}
    (stage,) = (stage for stage in place.read_json("run.json")["stages"] if stage["name"] == "score")
    seconds = 3600 * stage["cpu_hours"]
    told = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    return (
        f"Chosen by estimates against chosen by the true KL of all {len(blocks)} blocks, KL at each preset's bytes: "
        f"{told}. The stage `score` took {seconds:.0f} CPU seconds, with its rounding; those true KL took "
        f"{full_seconds:.0f} more once all was rounded: {seconds / (seconds + full_seconds):.2f} of both."
    )


def replaced(search: SmallSearch, rows: Sequence[dict[str, Any]]) -> list[Blocks]:
    """The parent with the block of each row in its layer."""
    own: Blocks = tuple([PARENT_BLOCK] * search.parent.shape.num_layers)
    found: list[Blocks] = []
    for row in rows:
        block: Block = (row["attention"], row["ffn"])
        found.append((*own[: row["layer"]], block, *own[row["layer"] + 1 :]))
    return found


def estimates(search: SmallSearch) -> str:
    rows = [row for row in search.workspace.read_table("scores") if row["layer"] >= 0]
    chosen = random.Random(0).sample(rows, min(CHECKED, len(rows)))
    changed = replaced(search, chosen)
    kl = quality(search, "score", changed)
    true = np.array([kl[each].kl_nats for each in changed])
    estimated = np.array([row["estimated_nats"] for row in chosen])
    ratios = np.quantile(estimated / true, [0.1, 0.5, 0.9])
    ranks = [np.argsort(np.argsort(values)) for values in (true, estimated)]
    spearman = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return (
        f"Estimates of {len(chosen)} of {len(rows)} blocks, drawn at random, against their true KL on the score text: "
        f"Spearman {spearman:.3f}; estimate over truth {ratios[1]:.2f} (a tenth is below {ratios[0]:.2f}, a tenth "
        f"above {ratios[2]:.2f})."
    )


if __name__ == "__main__":
    main()
