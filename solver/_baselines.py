"""Baselines: what simpler rules choose under the same limits, to be shown beside the optimum."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inlay.solver._checks import ProblemError
from inlay.solver._describe import describe_picks
from inlay.solver._instance import Instance
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, limit_rows
from inlay.solver._table import Table

TRIES = 1000
"""Random architectures tried."""


def baseline(problem: Problem, method: str, *, seed: int = 0) -> Solution:
    """What a simple rule chooses: feasible or, where it breaks a limit, infeasible, with its choices all the same.

    `greedy`: from the best of every layer, exchange the choice that costs least score for what it saves until the
    limits hold; it weighs choices by their own scores, pair terms count in the result only. `uniform`: one label in
    every layer, the best that holds the limits (else the nearest to them); no choices when no label is everywhere.
    `random`: the best of 1,000 drawn with `seed` that holds the limits (else the nearest). `largest` and `no_op`: the
    choices that cost most, or least, in all costs together. Of a problem's alternatives the best is told that holds the
    limits. No bound is given. Raises ProblemError for an unknown method.
    """
    if method not in METHODS:
        raise ProblemError(f"`method` is `{method}`; use one of {', '.join(METHODS)}")
    found = [_chosen(one, method, seed) for one in problem.alternatives]
    return min(found, key=lambda each: (each.status, each.objective is None, each.objective or 0))


def _chosen(problem: Problem, method: str, seed: int) -> Solution:
    begin = time.monotonic()
    rows = limit_rows(problem)
    picks = METHODS[method](problem, rows, seed)
    if picks is None:
        return Solution("infeasible", seconds=time.monotonic() - begin, method=method)
    return describe_picks(problem, rows, picks, time.monotonic() - begin, method)


def _greedy(problem: Problem, rows: Rows, seed: int) -> np.ndarray:
    table, most = problem.table, rows.most
    values = np.vstack([table.score, rows.coefficients])
    scale = np.maximum(np.abs(rows.coefficients).max(axis=1, initial=1), 1)[:, None]
    between = functools.cache(functools.partial(_cheapest, table))
    picks = between(0, table.num_layers)
    assert picks is not None
    while True:
        total = rows.coefficients[:, picks].sum(axis=1)
        excess = np.maximum(total - most, 0)[:, None] / scale
        if not excess.any():
            return picks
        exchanges = _exchanges(table, values, picks, between)
        saved = (excess - np.maximum((total - most)[:, None] + exchanges.change[1:], 0) / scale).sum(axis=0)
        useful = exchanges.possible & (saved > 1e-12)
        if not useful.any():
            return picks
        paid = np.maximum(exchanges.change[0], 0) + 1e-9
        rate = np.where(useful, paid / np.maximum(saved, 1e-12), np.inf)
        picks = exchanges.make(table, picks, int(rate.argmin()))


@dataclass(frozen=True)
class _Exchanges:
    """For every choice: what taking it `change`s [m + 1, N] (score, rows), and whether that is `possible` [N].

    Where it covers a picked choice only in part, the rest of that one is filled anew: `begin`, `end` [L + 1] are those
    of the picked choice around each boundary of layers, `before`, `after` the fillers from and to them.
    """

    change: np.ndarray
    possible: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    before: dict[int, np.ndarray | None]
    after: dict[int, np.ndarray | None]

    def make(self, table: Table, picks: np.ndarray, choice: int) -> np.ndarray:
        """`picks` with `choice` taken."""
        start, stop = int(table.layer[choice]), int(table.layer[choice] + table.span[choice])
        stays = (table.layer[picks] < self.begin[start]) | (table.layer[picks] >= self.end[stop])
        fillers = [fill for fill in (self.before.get(start), self.after.get(stop)) if fill is not None]
        made = np.concatenate([picks[stays], [choice], *fillers])
        return made[np.argsort(table.layer[made])]


def _exchanges(
    table: Table, values: np.ndarray, picks: np.ndarray, between: Callable[[int, int], np.ndarray | None]
) -> _Exchanges:
    bounds = table.num_layers + 1
    begin, end = np.arange(bounds), np.arange(bounds)
    fills = np.zeros((2, len(values), bounds), dtype=np.int64)
    possible = np.ones((2, bounds), dtype=bool)
    sides: tuple[dict[int, np.ndarray | None], ...] = ({}, {})
    upto = np.zeros((len(values), bounds), dtype=np.int64)
    upto[:, table.layer[picks] + table.span[picks]] = values[:, picks].cumsum(axis=1)
    for pick in picks[table.span[picks] > 1].tolist():
        first, last = int(table.layer[pick]), int(table.layer[pick] + table.span[pick])
        for at in range(first + 1, last):
            begin[at], end[at] = first, last
            for side, ends in enumerate(((first, at), (at, last))):
                sides[side][at] = fill = between(*ends)
                possible[side, at] = fill is not None
                fills[side, :, at] = 0 if fill is None else values[:, fill].sum(axis=1)
    start, stop = table.layer, table.layer + table.span
    change = values + fills[0][:, start] + fills[1][:, stop] - upto[:, end[stop]] + upto[:, begin[start]]
    return _Exchanges(change, possible[0, start] & possible[1, stop], begin, end, *sides)


def _cheapest(table: Table, begin: int, end: int) -> np.ndarray | None:
    """The choices of least score, pair terms aside, that cover the layers from `begin` to before `end` exactly."""
    least = np.full(end - begin + 1, np.inf)
    least[0] = 0.0
    last = np.full(end - begin + 1, -1, dtype=np.int64)
    for layer in range(begin, end):
        for choice in range(int(table.first[layer]), int(table.first[layer + 1])):
            to = layer + int(table.span[choice]) - begin
            score = least[layer - begin] + int(table.score[choice])
            if to < len(least) and score < least[to]:
                least[to], last[to] = score, choice
    if not np.isfinite(least[-1]):
        return None
    picks: list[int] = []
    while end > begin:
        picks.append(int(last[end - begin]))
        end = int(table.layer[picks[-1]])
    return np.array(picks[::-1], dtype=np.int64)


def _uniform(problem: Problem, rows: Rows, seed: int) -> np.ndarray | None:
    first, candidates = problem.table.first, []
    places = [{choice.label: k for k, choice in enumerate(layer)} for layer in problem.layers]
    for label in places[0]:
        picks, layer = [], 0
        while layer < len(places) and label in places[layer]:
            index = places[layer][label]
            picks.append(int(first[layer]) + index)
            layer += problem.layers[layer][index].layers
        if layer == len(places):
            candidates.append(np.array(picks))
    return _nearest(problem, rows, candidates) if candidates else None


def _random(problem: Problem, rows: Rows, seed: int) -> np.ndarray | None:
    generator, table = np.random.default_rng(seed), problem.table
    ends = np.zeros(table.num_layers + 1, dtype=bool)
    ends[-1] = True
    options: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * table.num_layers
    for layer in range(table.num_layers - 1, -1, -1):
        here = np.arange(table.first[layer], table.first[layer + 1])
        options[layer] = here[ends[layer + table.span[here]]]
        ends[layer] = len(options[layer]) > 0
    candidates = []
    for _ in range(TRIES):
        picks, layer = [], 0
        while layer < table.num_layers:
            picks.append(int(options[layer][generator.integers(len(options[layer]))]))
            layer += int(table.span[picks[-1]])
        candidates.append(np.array(picks))
    return _nearest(problem, rows, candidates)


def _largest(problem: Problem, rows: Rows, seed: int) -> np.ndarray:
    return _extreme(problem, -1)


def _no_op(problem: Problem, rows: Rows, seed: int) -> np.ndarray:
    return _extreme(problem, 1)


def _extreme(problem: Problem, sign: int) -> np.ndarray:
    """The architecture whose costs, each taken relative to the largest there is, add up to least (or most)."""
    costs = problem.table.costs
    share = (costs * (1 << 30) // np.maximum(costs.max(axis=0, initial=1), 1)).sum(axis=1)
    instance = Instance(problem, limit_rows(problem).only([]), score=sign * share)
    picks = instance.minimise(np.zeros(0, dtype=np.int64)).picks
    assert picks is not None
    return picks


def _nearest(problem: Problem, rows: Rows, candidates: list[np.ndarray]) -> np.ndarray:
    """The candidate of the best objective among those that hold the limits, else the one with the least excess."""
    table = problem.table
    sides = [
        np.array([table.first[layer] + index for layer, index in ends], dtype=np.int64)
        for ends in ([pair.first for pair in problem.pairs], [pair.second for pair in problem.pairs])
    ]
    together = np.array([int(pair.score) for pair in problem.pairs], dtype=np.int64)
    held = np.zeros(len(table.score), dtype=bool)

    def key(picks: np.ndarray) -> tuple[float, int]:
        total = rows.coefficients[:, picks].sum(axis=1)
        excess = np.maximum(total - rows.most, 0) / np.maximum(np.abs(rows.most), 1)
        held[:] = False
        held[picks] = True
        both = held[sides[0]] & held[sides[1]]
        return float(excess.sum()), int(table.score[picks].sum() + together[both].sum())

    return min(candidates, key=key)


METHODS: dict[str, Callable[[Problem, Rows, int], np.ndarray | None]] = {
    "greedy": _greedy,
    "uniform": _uniform,
    "random": _random,
    "largest": _largest,
    "no_op": _no_op,
}
