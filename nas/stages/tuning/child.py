"""The child that trials train: what the search has kept, else what its first solve picks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.spans import scratch_of
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.beside import add_beside, first_variants, variants_beside
from inlay.nas.stages.calibrate import calibrate_piece, sums_of
from inlay.nas.stages.distill import build_library, keeps_outcomes, layer_variants, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.scoring import score_all, weigh_formats
from inlay.nas.tables.architecture import Blocks, architecture_of, blocks_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import parse_variant

Timed = Callable[[str], AbstractContextManager[list[str]]]
"""A stage by its name; the words that are appended to its list are told when it ends."""


@dataclass(frozen=True)
class Child:
    """What every trial trains.

    Args:
        architecture: a block a layer.
        library: the search's trained variants.
        trained: by layer, the labels of the child's own that local distillation trains, and a handle to the sums that
            start them.
    """

    architecture: Blocks
    library: Library
    trained: dict[str, dict[str, Any]]


def find_child(search: Search, texts: Texts, timed: Timed, known: Blocks | None) -> Child:
    """The child and all that its trials start from; what the search has done is taken, what it lacks is done for it.

    Args:
        search: the running search.
        texts: of the search.
        timed: shows and times a stage.
        known: the architecture that the study began with, or that the search has kept.

    Raises:
        InfeasibleError: nothing meets the budget.
    """
    architecture, costs = known, None
    if architecture is None:
        with timed("measure"):
            costs = CostTable(cost_rows(search))
    with timed("distill"):
        records = build_library(search, texts.distill, first_variants(search))
        if known is not None:
            records += build_library(search, texts.distill, variants_beside(search, known))
        library = library_of(records)
    if architecture is None:
        assert costs is not None
        with timed("score") as told:
            records, found = add_beside(search, texts, records, score_all(search, texts, library), costs)
            library = library_of(records)
            told.append(found.note)
            tokens = {s.name: s.batch_size * s.generate for s in search.job.hardware.scenarios}
            problem = Tables(ScoreTable.of(found.rows), costs, tokens).problem(search.job.budget)
            (solution,) = solve_pool(problem, 1, 0.0, search.job.solve.time_limit)
            architecture = tuple(architecture_of(solution.labels))
    else:
        weigh_formats(search, texts)
    return Child(architecture, library, _trained(search, texts, library, architecture))


def kept_architecture(search: Search) -> Blocks | None:
    """What this very search has kept, if it has come so far."""
    run = search.workspace.find_json("run.json") or {}
    solution = search.workspace.find_json("solution.json")
    if solution is None or run.get("job_digest") != search.job.search_digest():
        return None
    return blocks_of(solution["architecture"])


def _trained(search: Search, texts: Texts, library: Library, architecture: Blocks) -> dict[str, dict[str, Any]]:
    own: dict[int, list[str]] = {}
    for layer, block in enumerate(architecture):
        bare = [parse_variant(label).bare.label for label in block[:2]]
        if held := [label for label in bare if library.has(layer, label)]:
            own[layer] = held
    scratch = scratch_of(search, texts.distill, keeps_outcomes(search))
    offered = {layer: layer_variants(search, layer) for layer in own}
    summed = [layer for layer in own if statistics_of(offered[layer], search.parent.shape, layer)]
    records = search.run([calibrate_piece(search, texts.distill, layer, offered[layer], scratch) for layer in summed])
    sums = dict(zip(summed, map(sums_of, records), strict=True))
    return {str(layer): {"variants": labels, "sums": sums.get(layer, "")} for layer, labels in own.items()}
