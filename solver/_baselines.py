"""Baselines: what simpler rules choose under the same limits, to be shown beside the optimum."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from inlay.solver._checks import ProblemError
from inlay.solver._instance import Instance
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, limit_rows
from inlay.solver._solve import describe_picks

TRIES = 1000
"""Random architectures tried."""


def baseline(problem: Problem, method: str, *, seed: int = 0) -> Solution:
    """What a simple rule chooses: feasible or, where it breaks a limit, infeasible, with its choices all the same.

    `greedy`: from the best of every layer, exchange the choice that costs least score for what it saves until the
    limits hold. `uniform`: one label in every layer, the best that holds the limits (else the nearest to them); no
    choices when no label is everywhere. `random`: the best of 1,000 drawn with `seed` that holds the limits (else the
    nearest). `largest` and `no_op`: in every layer the choice that costs most, or least, in all costs together. No
    bound is given. Raises ProblemError for an unknown method, and for `greedy` where a choice covers several layers.
    """
    if method not in METHODS:
        raise ProblemError(f"`method` is `{method}`; use one of {', '.join(METHODS)}")
    begin = time.monotonic()
    rows = limit_rows(problem)
    picks = METHODS[method](problem, rows, seed)
    if picks is None:
        return Solution("infeasible", seconds=time.monotonic() - begin, method=method)
    return describe_picks(problem, rows, picks, time.monotonic() - begin, method)


def _greedy(problem: Problem, rows: Rows, seed: int) -> np.ndarray:
    table = problem.table
    if int(table.span.max()) > 1:
        raise ProblemError("`greedy` exchanges choices of single layers; this problem has choices of several")
    order = np.lexsort((table.score, table.layer))
    picks: np.ndarray = order[table.first[:-1]]
    scale = np.maximum(np.abs(rows.coefficients).max(axis=1, initial=1), 1)[:, None]
    while True:
        total = rows.coefficients[:, picks].sum(axis=1)
        excess = np.maximum(total - rows.most, 0)[:, None] / scale
        if not excess.any():
            return picks.copy()
        change = rows.coefficients - rows.coefficients[:, picks[table.layer]]
        saved = (excess - np.maximum((total - rows.most)[:, None] + change, 0) / scale).sum(axis=0)
        paid = np.maximum(table.score - table.score[picks[table.layer]], 0)
        rate = np.where(saved > 1e-12, (paid + 1e-9) / np.maximum(saved, 1e-12), np.inf)
        best = int(rate.argmin())
        if not np.isfinite(rate[best]):
            return picks
        picks[table.layer[best]] = best


def _uniform(problem: Problem, rows: Rows, seed: int) -> np.ndarray | None:
    places = [{choice.label: k for k, choice in enumerate(layer) if choice.layers == 1} for layer in problem.layers]
    everywhere = [label for label in places[0] if all(label in place for place in places)]
    first = problem.table.first
    candidates = [
        np.array([int(first[layer]) + place[label] for layer, place in enumerate(places)]) for label in everywhere
    ]
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
            picks.append(int(generator.choice(options[layer])))
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
    """The candidate of the best score among those that hold the limits, else the one with the least excess."""

    def key(picks: np.ndarray) -> tuple[float, float]:
        total = rows.coefficients[:, picks].sum(axis=1)
        excess = np.maximum(total - rows.most, 0) / np.maximum(np.abs(rows.most), 1)
        return float(excess.sum()), float(problem.table.score[picks].sum())

    return min(candidates, key=key)


METHODS: dict[str, Callable[[Problem, Rows, int], np.ndarray | None]] = {
    "greedy": _greedy,
    "uniform": _uniform,
    "random": _random,
    "largest": _largest,
    "no_op": _no_op,
}
