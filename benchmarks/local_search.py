"""Which local search finishes the pool: swaps ranked by prediction, Optuna's TPE, or an evolutionary search (NSGA-II).

    python benchmarks/local_search.py WORKSPACE [--evaluations 48] [--seeds 3]

On the library and tables of a finished search. All start from the same incumbent, the best by true KL of the pool that
the corrected scores gave, know the same corrected scores' budget, and take the same number of true KLs on the score
text; candidates above the budget cost them nothing and are drawn again. TPE and NSGA-II choose a block a layer and see
the true KL alone. The figure is the KL of the best found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import optuna
from machine import footer

from inlay.cluster.runtime import connect
from inlay.nas.loop.excess import excess_of
from inlay.nas.loop.pool import Pool
from inlay.nas.loop.search import Search, cluster_settings
from inlay.nas.loop.solving import load_tables
from inlay.nas.loop.swaps import NEIGHBOURS
from inlay.nas.pieces.texts import Ids
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.assemble import correct, swap
from inlay.nas.stages.solutions import job_of, library_of_workspace
from inlay.nas.tables.architecture import Blocks
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.workspace import Workspace

DRAWS = 2000
"""Architectures drawn for one evaluation, at most, until one is new and within the budget."""
STARTS = 4
"""The best of the pool, which the samplers are shown."""
Sampler = Callable[[int], optuna.samplers.BaseSampler]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", nargs="+")
    parser.add_argument("--evaluations", type=int, default=4 * NEIGHBOURS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/local_search.md"))
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lines = [row for place in options.workspace for row in rows(Workspace(place), options.evaluations, options.seeds)]
    head = [
        "# The local search around the best of the pool",
        "",
        f"KL in nats per token on the score text after {options.evaluations} true evaluations at most, from the same",
        f"start; worst and best of {options.seeds} seeds where there is chance.",
        "Written by `benchmarks/local_search.py`.",
        "",
        "| search | start | swaps by prediction | (evaluations) | TPE | NSGA-II |",
        "|---|---|---|---|---|---|",
    ]
    options.output.write_text("\n".join([*head, *lines, "", footer(), ""]))
    print(options.output.read_text())


def rows(place: Workspace, evaluations: int, seeds: int) -> list[str]:
    """One line of the table."""
    job, parent = job_of(place)
    score = place.read_json("texts.json")["score"]
    tables = load_tables(place)
    tables = type(tables)(ScoreTable(tables.scores.measured, tables.scores.gammas), tables.costs, tables.tokens)
    with connect(cluster_settings(job, place)) as cluster:
        search = Search(job, place, parent, cluster, Reporter())
        ids = Ids(score["digest"], tuple(score["shape"]))
        pool = Pool(search, ids, library_of_workspace(place), tables)
        correct(pool)
        start, tried = pool.by_kl()[0], len(pool.candidates)
        starts = [candidate.architecture for candidate in pool.by_kl()[:STARTS]]
        others = {
            name: [drawn(pool, starts, sampler(seed), evaluations) for seed in range(seeds)]
            for name, sampler in SAMPLERS.items()
        }
        swap(pool)
        best, used = pool.by_kl()[0], len(pool.candidates) - tried
    told = " | ".join(f"{max(found):.4f} to {min(found):.4f}" for found in others.values())
    budget = ", ".join(f"{limit.field} {limit.text}" for limit in job.budget)
    name = f"{Path(job.parent).name}, {budget}, seed {job.seed}"
    return [f"| {name} | {start.true.kl_nats:.4f} | {best.true.kl_nats:.4f} | {used} | {told} |"]


def drawn(pool: Pool, starts: list[Blocks], sampler: optuna.samplers.BaseSampler, evaluations: int) -> float:
    """The least true KL that a sampler comes to; what it starts from is told to it and costs it nothing."""
    study = optuna.create_study(sampler=sampler)
    blocks = {f"{layer:04d}": [" + ".join(b) for b in pool.scores.blocks(layer)] for layer in range(len(starts[0]))}
    own = Pool(pool.search, pool.ids, pool.library, pool.tables)
    for known in starts:
        study.enqueue_trial({name: " + ".join(b) for name, b in zip(blocks, known, strict=True)})
    most = evaluations + len(starts)
    while len(own.candidates) < most:
        asked: list[tuple[optuna.trial.Trial, Blocks]] = []
        for _ in range(DRAWS):
            trial = study.ask()
            labels = [trial.suggest_categorical(name, held) for name, held in blocks.items()]
            architecture: Blocks = tuple((label.split(" + ")[0], label.split(" + ")[1]) for label in labels)
            over = max(e.ratio for e in excess_of(pool.search, pool.tables.costs, architecture, None))
            if over > 1:
                # Above the budget: worse than anything that is within it, and the nearer the better.
                study.tell(trial, 1e3 * over)
            elif held := [c for c in own.candidates if c.architecture == architecture]:
                study.tell(trial, held[0].true.kl_nats)
            elif architecture not in [a for _, a in asked]:
                asked.append((trial, architecture))
                if len(asked) == min(NEIGHBOURS, most - len(own.candidates)):
                    break
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if not asked:
            break
        found = {c.architecture: c for c in own.add([a for _, a in asked], "drawn")}
        for trial, architecture in asked:
            study.tell(trial, found[architecture].true.kl_nats)
    return own.by_kl()[0].true.kl_nats


SAMPLERS: dict[str, Sampler] = {
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=NEIGHBOURS),
    "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=NEIGHBOURS),
}


if __name__ == "__main__":
    main()
