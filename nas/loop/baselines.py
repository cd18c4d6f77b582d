"""The baselines of every run: `uniform`, one block everywhere, and `depth`, whole layers dropped.

Both are sought as if they were to win: by true KL, under the same budget, from the same library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inlay.nas.loop.search import Search
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks, spread
from inlay.nas.tables.scores import ScoreTable

BASELINES = ("uniform", "depth")
UNIFORM_TRIED = 12
"""Blocks whose true KL is taken, those of the least predicted KL first."""
DEPTH_TRIED = 4
"""Layers whose dropping is tried again once one has gone: evaluations grow with layers, not with their square."""
NO_BLOCK: Block = ("attention:no_op", "ffn:no_op")
UNIFORM = "baseline uniform: one block everywhere"
DEPTH = "baseline depth: {} of {} layers dropped"

Excess = Callable[[Blocks], float]
"""How far an architecture is above the budget: its worst predicted value over limit, 1 or less is within."""


@dataclass(frozen=True)
class Baseline:
    """A baseline and its true KL; `over_budget` is its predicted excess where nothing of its kind meets the budget."""

    name: str
    architecture: Blocks
    comparison: Comparison
    over_budget: float | None


def uniform(search: Search, ids: Ids, library: Library, scores: ScoreTable, excess: Excess) -> Baseline:
    """The best true KL among architectures of one block everywhere within the budget, else the nearest above it."""
    num_layers = search.parent.shape.num_layers
    every = everywhere(scores, num_layers)
    feasible = sorted((a for a in every if excess(a) <= 1), key=scores.predict)[:UNIFORM_TRIED]
    if not feasible:
        nearest = min(every, key=excess)
        (comparison,) = true_scores(search, ids, library, [nearest], UNIFORM)
        return Baseline("uniform", nearest, comparison, excess(nearest))
    found = true_scores(search, ids, library, feasible, UNIFORM)
    best = min(range(len(feasible)), key=lambda index: found[index].kl_nats)
    return Baseline("uniform", feasible[best], found[best], None)


def everywhere(scores: ScoreTable, num_layers: int) -> list[Blocks]:
    """Every block in all layers, runs of layers one behind the other; a layer that has one of its variants not, since
    layers differ, keeps the parent's."""
    offered = [set(scores.blocks(layer)) for layer in range(num_layers)]

    def at(layer: int, block: Block) -> Block:
        nearest = (block, (block[0], PARENT_BLOCK[1]), (PARENT_BLOCK[0], block[1]), PARENT_BLOCK)
        return next(each for each in nearest if each in offered[layer])

    def all_over(block: Block) -> Blocks:
        found: list[Block] = []
        while len(found) < num_layers:
            found += spread(at(len(found), block))
        return tuple(found)

    blocks = sorted({block[:2] for block in set.union(*offered)})
    found = dict.fromkeys(map(all_over, blocks))
    stored: list[Block] = [(), *((ends,) for ends in scores.ends)]
    stored += [(*ends, cache) for cache in scores.caches for ends in stored]
    return [(*each[:-1], each[-1] + whole) for each in found for whole in stored]


def depth(search: Search, ids: Ids, library: Library, excess: Excess) -> Baseline:
    """Layers dropped until the budget is met, the one of least true KL first.

    All are tried at the start. After each, those are tried again that added least when they were last tried: what a
    layer adds grows with the layers that went before it, so that one not tried for long looks better than it is, and
    comes first.
    """
    num_layers = search.parent.shape.num_layers
    current: Blocks = tuple([PARENT_BLOCK] * num_layers)
    (comparison,) = true_scores(search, ids, library, [current], DEPTH.format(0, num_layers))
    added: dict[int, float] = {}
    while excess(current) > 1:
        left = [layer for layer in range(num_layers) if current[layer] != NO_BLOCK]
        if not left:
            return Baseline("depth", current, comparison, excess(current))
        tried = sorted(left, key=added.__getitem__)[:DEPTH_TRIED] if added else left
        options = [_dropped(current, layer) for layer in tried]
        found = true_scores(search, ids, library, options, DEPTH.format(current.count(NO_BLOCK), num_layers))
        added |= {layer: own.kl_nats - comparison.kl_nats for layer, own in zip(tried, found, strict=True)}
        best = min(range(len(options)), key=lambda index: found[index].kl_nats)
        current, comparison = options[best], found[best]
    return Baseline("depth", current, comparison, None)


def _dropped(architecture: Sequence[Block], layer: int) -> Blocks:
    return tuple(NO_BLOCK if index == layer else block for index, block in enumerate(architecture))
