"""The second pass: what stands beside one attention only is trained where the first solve would use that attention.

An ffn that makes up for an attention that is not there (`alone`) is of use where a solution leaves that attention out,
and it is another training for every layer. So the program is solved once without any; a layer gets them where one of
its solutions has their attention, and then the program is solved with them (Puzzle, arXiv 2411.19146, section 3: a
decoupled pass, then a coupled one of what it found). Runs of layers that are one choice are trained then too, all of
them: that no layer's own choice is much like them says nothing against them.
"""

from __future__ import annotations

from collections.abc import Sequence

from inlay.cluster.pieces import Record
from inlay.nas.errors import InfeasibleError
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.sentences import counted
from inlay.nas.stages.distill import build_library, layer_variants, library_of
from inlay.nas.stages.score import score_beside
from inlay.nas.stages.scoring import Scored
from inlay.nas.tables.architecture import Blocks, architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import Variant, parse_variant


def first_variants(search: Search) -> list[list[Variant]]:
    """What is trained before anything is solved, by layer."""
    return [[v for v in held if v.beside is None] for held in _trained(search)]


def add_beside(
    search: Search, texts: Texts, records: Sequence[Record], found: Scored, costs: CostTable
) -> tuple[list[Record], Scored]:
    """Trains and scores what stands beside an attention that the first solve uses.

    Args:
        search: the running search.
        texts: `distill` trains, `score` scores.
        records: of what was trained before.
        found: the scores of that.
        costs: of all variants.

    Returns:
        All records and all scores, those of before among them.
    """
    if not any(_waiting(search)):
        return list(records), found
    used = _used(search, found, costs)
    chosen = [
        [v for v in held if used is None or v.run or v.beside in used[layer]]
        for layer, held in enumerate(_waiting(search))
    ]
    records = [*records, *build_library(search, texts.distill, chosen)]
    scored = score_beside(search, texts.score, library_of(records))
    number, layers = sum(len({v.block for v in held}) for held in chosen), sum(map(bool, chosen))
    return records, found.with_blocks(scored, f"{counted(number, 'pair')} in {counted(layers, 'layer')}")


def variants_beside(search: Search, architecture: Blocks) -> list[list[Variant]]:
    """What the second pass has trained in the layers of an architecture where that is chosen."""
    bare = [parse_variant(block[1]).bare for block in architecture]
    return [held if bare[layer] in held else [] for layer, held in enumerate(_waiting(search))]


def _waiting(search: Search) -> list[list[Variant]]:
    """What is trained in the second pass, where it is, by layer."""
    return [[v for v in held if v.beside is not None] for held in _trained(search)]


def _trained(search: Search) -> list[tuple[Variant, ...]]:
    return [layer_variants(search, layer) for layer in range(search.parent.shape.num_layers)]


def _used(search: Search, found: Scored, costs: CostTable) -> list[set[str]] | None:
    """The labels of attention that solutions under the budget have at each layer; None where there is no solution, so
    that what is missing may be needed anywhere."""
    job = search.job
    tokens = {each.name: each.batch_size * each.generate for each in job.hardware.scenarios}
    problem = Tables(ScoreTable.of(found.rows), costs, tokens).problem(job.budget)
    try:
        solutions = solve_pool(problem, job.solve.pool, job.solve.min_difference, job.solve.time_limit)
    except InfeasibleError:
        return None
    architectures = [architecture_of(solution.labels) for solution in solutions]
    return [{architecture[layer][0] for architecture in architectures} for layer in range(len(problem.layers))]
