"""A problem made ready for the exact solver: edges in an order that no permutation or renaming can change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inlay.solver._exact import Exact, Outcome
from inlay.solver._problem import Problem
from inlay.solver._relax import Edges, PairColumns
from inlay.solver._rows import Rows
from inlay.solver._table import Table

TIE_STEP = 1 << 20
"""Tie weights of one layer rise from choice to choice by a pseudo-random step below this."""


@dataclass(frozen=True)
class Canonical:
    """The canonical order of a table's choices: by layer, then span, score, costs, and label among equals.

    `order` [N] are table indices and `place` [N] its inverse; `tie` [N], in canonical order, are weights whose sum
    settles equally good answers.
    """

    order: np.ndarray
    place: np.ndarray
    tie: np.ndarray


class Instance:
    """A problem's `rows` and an Exact over its choices; answers come and go as table indices.

    `score` [N] replaces the problem's scores and then its pair terms do not count. `spare` as in Exact.
    """

    def __init__(self, problem: Problem, rows: Rows, *, score: np.ndarray | None = None, spare: int = 1) -> None:
        table = problem.table
        canonical = canonical_order(problem)
        order = canonical.order
        edges = Edges(
            table.layer[order],
            table.span[order],
            (table.score if score is None else score)[order],
            np.ascontiguousarray(rows.coefficients[:, order]),
        )
        pairs = _pair_columns(problem if score is None else None, canonical)
        self._canonical = canonical
        self._exact = Exact(table.num_layers, edges, canonical.tie, pairs, spare=spare)

    def add_row(self, coefficients: np.ndarray) -> None:
        """One more row [N] over the table's choices."""
        self._exact.add_row(coefficients[self._canonical.order])

    def minimise(
        self,
        most: np.ndarray,
        *,
        gap: float = 0.0,
        deadline: float = math.inf,
        starts: Sequence[np.ndarray] = (),
        at_most: float = math.inf,
        at_least: float = -math.inf,
    ) -> Outcome:
        """Exact.minimise, in table indices sorted by layer."""
        begin = [np.sort(self._canonical.place[start]) for start in starts]
        outcome = self._exact.minimise(
            most, gap=gap, deadline=deadline, starts=begin, at_most=at_most, at_least=at_least
        )
        if outcome.picks is None:
            return outcome
        picks = self._canonical.order[np.sort(outcome.picks)]
        return Outcome(picks, outcome.bound, outcome.proven, outcome.prices)


def canonical_order(problem: Problem) -> Canonical:
    """The canonical order of the problem's choices and its tie weights."""
    table = problem.table
    order = np.lexsort((*table.costs.T[::-1], table.score, table.span, table.layer))
    order = _by_label_among_equals(problem, table, order)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    climbing = np.cumsum(np.random.default_rng(0).integers(1, TIE_STEP, size=len(order)))
    first = np.searchsorted(table.layer[order], table.layer[order])
    return Canonical(order, place, climbing - climbing[first])


def _by_label_among_equals(problem: Problem, table: Table, order: np.ndarray) -> np.ndarray:
    numbers = np.column_stack([table.layer, table.span, table.score, table.costs])[order]
    same = np.concatenate([[False], (numbers[1:] == numbers[:-1]).all(axis=1), [False]])
    if not same.any():
        return order
    order = order.copy()
    labels = [choice.label for layer in problem.layers for choice in layer]
    starts = np.flatnonzero(same[1:] & ~same[:-1])
    ends = np.flatnonzero(~same[1:] & same[:-1]) + 1
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        order[start:end] = sorted(order[start:end].tolist(), key=labels.__getitem__)
    return order


def _pair_columns(problem: Problem | None, canonical: Canonical) -> PairColumns:
    pairs = () if problem is None else problem.pairs
    first = np.zeros(0) if problem is None else problem.table.first
    sides: Sequence[list[int]] = [
        [int(canonical.place[first[layer] + index]) for layer, index in ((p.first, p.second)[side] for p in pairs)]
        for side in (0, 1)
    ]
    scores = [int(pair.score) for pair in pairs]
    return PairColumns(*(np.array(column, dtype=np.int64) for column in (*sides, scores)))
