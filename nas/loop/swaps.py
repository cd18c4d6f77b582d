"""Swaps: changes of one or two layers of an architecture, or of its cache, within the limits, where the local search
looks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inlay.nas.tables.architecture import (
    PARENT_BLOCK,
    Block,
    Blocks,
    block_of,
    cache_form,
    choice_label,
    choices_of,
    num_layers,
    spread,
)
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import Choice, Problem

NEIGHBOURS = 12
SWAPS_PAIRED = 1000
"""Single swaps, those that change the prediction least, that are tried in pairs."""

_ByLabel = dict[str, NDArray[np.int64]]


def neighbours(architecture: Blocks, scores: ScoreTable, problem: Problem) -> list[Blocks]:
    """Single swaps and pairs of swaps (one cheaper, one better) of the least predicted KL, that first."""
    every = _singles(architecture, scores, problem)
    nearest = np.argsort(np.abs(every.gain_M), kind="stable")[:SWAPS_PAIRED]
    cost_MK, gain_M = every.cost_MK[nearest], every.gain_M[nearest]
    kept = [every.moves[index] for index in nearest]
    first_M, end_M = np.array([move.first for move in kept]), np.array([move.end for move in kept])
    pair_fits = np.all(cost_MK[:, None] + cost_MK[None] <= every.room_K, axis=-1) & (end_M[:, None] <= first_M[None])
    fitting = np.flatnonzero(np.all(cost_MK <= every.room_K, axis=-1))
    found = [(float(gain_M[m]), (kept[m],)) for m in fitting]
    pairs = np.argwhere(pair_fits)
    gain_P = gain_M[pairs[:, 0]] + gain_M[pairs[:, 1]]
    best = [
        (float(gain_P[p]), (kept[pairs[p, 0]], kept[pairs[p, 1]]))
        for p in np.argsort(gain_P, kind="stable")[:NEIGHBOURS]
    ]
    ranked = sorted([*found, *best], key=lambda item: item[0])
    return [_swapped(architecture, *changes) for _, changes in ranked][:NEIGHBOURS]


def spending(architecture: Blocks, scores: ScoreTable, problem: Problem) -> list[Blocks]:
    """Every single swap that takes more of a limited cost, fits, and is not predicted to be worse; the best first."""
    every = _singles(architecture, scores, problem)
    fits_M = np.all(every.cost_MK <= every.room_K, axis=-1) & np.any(every.cost_MK > 0, axis=-1) & (every.gain_M <= 0)
    order = [m for m in np.argsort(every.gain_M, kind="stable") if fits_M[m]]
    return [_swapped(architecture, every.moves[m]) for m in order]


@dataclass(frozen=True)
class _Move:
    """What is chosen otherwise from layer `first` on: choices that fill as many layers as those they replace."""

    first: int
    choices: tuple[Block, ...]

    @property
    def end(self) -> int:
        """The layer behind the last one."""
        return self.first + sum(map(num_layers, self.choices))


@dataclass(frozen=True)
class _Singles:
    """The M single swaps of an architecture under K upper limits.

    Args:
        moves: what is chosen otherwise in each.
        cost_MK: what each adds to the limited costs.
        gain_M: what each adds to the predicted KL, nats.
        room_K: what the limits leave beside the architecture.
    """

    moves: list[_Move]
    cost_MK: NDArray[np.int64]
    gain_M: NDArray[np.float64]
    room_K: NDArray[np.int64]


def _singles(architecture: Blocks, scores: ScoreTable, problem: Problem) -> _Singles:
    """The limits are upper ones, as those of every budget are: a throughput is a runtime here."""
    limits = {limit.name: limit.upper for limit in problem.limits if limit.upper is not None}
    columns = [problem.cost_names.index(name) for name in limits]
    costs_of = _Costs(problem, columns)
    room_K = np.array(list(limits.values()), dtype=np.int64) - costs_of.total(architecture)
    own = dict(choices_of(architecture))
    moves = [move for layer in own for move in _moves(own, layer, scores)]
    costs = [costs_of.change(architecture, own, move) for move in moves]
    gains = [
        _score(scores, move.first, move.choices) - _score(scores, move.first, _replaced(own, move)) for move in moves
    ]
    cost_MK = np.array(costs, dtype=np.int64).reshape(len(moves), len(columns))
    return _Singles(moves, cost_MK, np.array(gains, dtype=np.float64), room_K)


def _moves(own: Mapping[int, Block], layer: int, scores: ScoreTable) -> Iterator[_Move]:
    """Every other choice from a layer on.

    One that fills fewer layers than what is there has the parent's own behind it; one that fills more takes the place
    of whole choices, or is none.
    """
    end = layer + num_layers(own[layer])
    last = max(scores.measured)
    for block in scores.blocks(layer):
        if block == own[layer]:
            continue
        left = end - layer - num_layers(block)
        if left >= 0:
            whole = own[layer][len(PARENT_BLOCK) :] if left and end > last else ()
            behind = [PARENT_BLOCK] * left
            yield _Move(layer, (block, *behind[:-1], *((*each, *whole) for each in behind[-1:])))
        elif end - left in own or end - left > last:
            yield _Move(layer, (block,))


def _replaced(own: Mapping[int, Block], move: _Move) -> list[Block]:
    """The choices in whose place those of a move are."""
    return [block for layer, block in own.items() if move.first <= layer < move.end]


def _score(scores: ScoreTable, first: int, choices: Sequence[Block]) -> float:
    layers = itertools.accumulate(map(num_layers, choices[:-1]), initial=first)
    return sum(scores.score(layer, block) for layer, block in zip(layers, choices, strict=True))


class _Costs:
    """The limited costs of architectures: `columns` of the problem and of its alternatives, by label."""

    def __init__(self, problem: Problem, columns: Sequence[int]) -> None:
        self._columns = columns
        self._base_K = np.array([problem.base_costs[c] for c in columns], dtype=np.int64)
        self._by_cache = {
            cache_form([block_of(one.layers[-1][0].label)]): [self._by_label(layer) for layer in one.layers]
            for one in problem.alternatives
        }

    def total(self, architecture: Blocks) -> NDArray[np.int64]:
        """[K], base included."""
        held = self._by_cache[cache_form(architecture)]
        costs = [held[layer][choice_label(block)] for layer, block in choices_of(architecture)]
        total_K: NDArray[np.int64] = self._base_K + np.sum(costs, axis=0)
        return total_K

    def change(self, architecture: Blocks, own: Mapping[int, Block], move: _Move) -> NDArray[np.int64]:
        """[K]: what a move adds; another cache changes what every layer costs. `own` are the architecture's choices."""
        swapped = _swapped(architecture, move)
        if cache_form(swapped) != cache_form(architecture):
            return self.total(swapped) - self.total(architecture)
        held = self._by_cache[cache_form(architecture)]
        return self._sum(held, move.first, move.choices) - self._sum(held, move.first, _replaced(own, move))

    def _sum(self, held: Sequence[_ByLabel], first: int, choices: Sequence[Block]) -> NDArray[np.int64]:
        layers = itertools.accumulate(map(num_layers, choices[:-1]), initial=first)
        costs = [held[layer][choice_label(block)] for layer, block in zip(layers, choices, strict=True)]
        total_K: NDArray[np.int64] = np.sum(costs, axis=0)
        return total_K

    def _by_label(self, layer: Sequence[Choice]) -> _ByLabel:
        return {choice.label: np.array([choice.costs[c] for c in self._columns], dtype=np.int64) for choice in layer}


def _swapped(architecture: Blocks, *moves: _Move) -> Blocks:
    found = list(architecture)
    for move in moves:
        found[move.first : move.end] = [block for choice in move.choices for block in spread(choice)]
    return tuple(found)
