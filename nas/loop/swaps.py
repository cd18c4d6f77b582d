"""Swaps: changes of one or two layers of an architecture, or of its cache, within the limits, where the local search
looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.nas.tables.architecture import Block, Blocks, architecture_of, cache_form
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import Choice, Problem

NEIGHBOURS = 12
SWAPS_PAIRED = 1000
"""Single swaps, those that change the prediction least, that are tried in pairs."""


def neighbours(architecture: Blocks, scores: ScoreTable, problem: Problem) -> list[Blocks]:
    """Single swaps and pairs of swaps (one layer cheaper, one better) of the least predicted KL, that first."""
    every = _singles(architecture, scores, problem)
    nearest = np.argsort(np.abs(every.gain_M), kind="stable")[:SWAPS_PAIRED]
    cost_MK, gain_M = every.cost_MK[nearest], every.gain_M[nearest]
    kept = [every.moves[index] for index in nearest]
    layer_M = np.array([layer for layer, _ in kept])
    pair_fits = np.all(cost_MK[:, None] + cost_MK[None] <= every.room_K, axis=-1) & (layer_M[:, None] < layer_M[None])
    fitting = np.flatnonzero(np.all(cost_MK <= every.room_K, axis=-1))
    found = [(float(gain_M[m]), (kept[m],)) for m in fitting]
    pairs = np.argwhere(pair_fits)
    gain_P = gain_M[pairs[:, 0]] + gain_M[pairs[:, 1]]
    best = [
        (float(gain_P[p]), (kept[pairs[p, 0]], kept[pairs[p, 1]]))
        for p in np.argsort(gain_P, kind="stable")[:NEIGHBOURS]
    ]
    ranked = sorted([*found, *best], key=lambda item: item[0])
    return [_swapped(architecture, dict(changes)) for _, changes in ranked][:NEIGHBOURS]


def spending(architecture: Blocks, scores: ScoreTable, problem: Problem) -> list[Blocks]:
    """Every single swap that takes more of a limited cost, fits, and is not predicted to be worse; the best first."""
    every = _singles(architecture, scores, problem)
    fits_M = np.all(every.cost_MK <= every.room_K, axis=-1) & np.any(every.cost_MK > 0, axis=-1) & (every.gain_M <= 0)
    order = [m for m in np.argsort(every.gain_M, kind="stable") if fits_M[m]]
    return [_swapped(architecture, dict([every.moves[m]])) for m in order]


@dataclass(frozen=True)
class _Singles:
    """The M single swaps of an architecture under K upper limits.

    Args:
        moves: layer and new block of each.
        cost_MK: what each adds to the limited costs.
        gain_M: what each adds to the predicted KL, nats.
        room_K: what the limits leave beside the architecture.
    """

    moves: list[tuple[int, Block]]
    cost_MK: NDArray[np.int64]
    gain_M: NDArray[np.float64]
    room_K: NDArray[np.int64]


def _singles(architecture: Blocks, scores: ScoreTable, problem: Problem) -> _Singles:
    """The limits are upper ones, as those of every budget are: a throughput is a runtime here."""
    limits = {limit.name: limit.upper for limit in problem.limits if limit.upper is not None}
    columns = [problem.cost_names.index(name) for name in limits]
    costs_of = _Costs(problem, columns)
    own_K = costs_of.total(architecture)
    room_K = np.array(list(limits.values()), dtype=np.int64) - own_K
    moves: list[tuple[int, Block]] = []
    costs, gains = [], []
    for layer, own in enumerate(architecture):
        for block in scores.blocks(layer):
            if block != own:
                moves.append((layer, block))
                costs.append(costs_of.change(architecture, layer, block))
                gains.append(scores.score(layer, block) - scores.score(layer, own))
    cost_MK = np.array(costs, dtype=np.int64).reshape(len(moves), len(columns))
    return _Singles(moves, cost_MK, np.array(gains, dtype=np.float64), room_K)


class _Costs:
    """The limited costs of architectures: `columns` of the problem and of its alternatives, by label."""

    def __init__(self, problem: Problem, columns: Sequence[int]) -> None:
        self._columns = columns
        self._base_K = np.array([problem.base_costs[c] for c in columns], dtype=np.int64)
        self._by_cache = {
            cache_form(architecture_of([one.layers[-1][0].label])): [self._by_label(layer) for layer in one.layers]
            for one in problem.alternatives
        }

    def total(self, architecture: Blocks) -> NDArray[np.int64]:
        """[K], base included."""
        held = self._by_cache[cache_form(architecture)]
        costs = [own[" + ".join(block)] for own, block in zip(held, architecture, strict=True)]
        total_K: NDArray[np.int64] = self._base_K + np.sum(costs, axis=0)
        return total_K

    def change(self, architecture: Blocks, layer: int, block: Block) -> NDArray[np.int64]:
        """[K]: what another block at a layer adds; another cache changes what every layer costs."""
        swapped = _swapped(architecture, {layer: block})
        if cache_form(swapped) != cache_form(architecture):
            return self.total(swapped) - self.total(architecture)
        held = self._by_cache[cache_form(architecture)][layer]
        return held[" + ".join(block)] - held[" + ".join(architecture[layer])]

    def _by_label(self, layer: Sequence[Choice]) -> dict[str, NDArray[np.int64]]:
        return {choice.label: np.array([choice.costs[c] for c in self._columns], dtype=np.int64) for choice in layer}


def _swapped(architecture: Blocks, changes: dict[int, Any]) -> Blocks:
    return tuple(changes.get(layer, block) for layer, block in enumerate(architecture))
