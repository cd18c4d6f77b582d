"""Sensitivity: what a little more or less of a limit would buy, and which layers change first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inlay.solver._exact import Outcome
from inlay.solver._instance import Instance
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, limit_rows
from inlay.solver._solve import describe

DOUBLINGS = 8
"""A limit is moved by the step, twice the step, and so on, at most so often."""


@dataclass(frozen=True)
class LayerChange:
    """One layer whose choice changes, by label."""

    layer: int
    before: str
    after: str


@dataclass(frozen=True)
class Change:
    """What happens at the first moved `limit` that changes the best architecture: `gain` in score (negative: worse)."""

    limit: int
    gain: int
    layers: tuple[LayerChange, ...]


@dataclass(frozen=True)
class Sensitivity:
    """One side of one limit: the relaxation's `price` (score per unit), and the first changes when it is moved.

    `looser` and `tighter` are None when nothing changes within 2**7 steps, or nothing is left to choose from.
    """

    name: str
    side: str
    limit: int
    step: int
    price: float
    looser: Change | None
    tighter: Change | None


def sensitivity(
    problem: Problem, *, steps: Mapping[str, int] | None = None, time_limit: float = 30.0
) -> list[Sensitivity]:
    """What moving each limit by `steps[name]` does (default: a thousandth of it), doubled until something changes.

    Every figure comes from an exact solution; `time_limit` is in seconds. Empty when nothing meets the limits.
    """
    deadline = time.monotonic() + time_limit
    rows = limit_rows(problem)
    instance = Instance(problem, rows)
    outcome = instance.minimise(rows.most, deadline=deadline)
    if outcome.picks is None:
        return []
    found = []
    for k, name in enumerate(rows.names):
        limit = rows.limit(problem, k, int(rows.most[k]))
        step = max(1, (steps or {}).get(name, abs(limit) // 1000))
        moved = _Moved(problem, instance, rows, k, outcome.picks, deadline)
        changes = (moved.first_change(step), moved.first_change(-step))
        found.append(Sensitivity(name, rows.sides[k], limit, step, float(outcome.prices[k]), *changes))
    return found


@dataclass(frozen=True)
class _Moved:
    """Row `k` of a solved problem, to be moved."""

    problem: Problem
    instance: Instance
    rows: Rows
    k: int
    picks: np.ndarray
    deadline: float

    def first_change(self, step: int) -> Change | None:
        now = self._describe(self.rows, Outcome(self.picks, None, True, np.zeros(0)))
        for doubling in range(DOUBLINGS):
            most = self.rows.most.copy()
            most[self.k] += step * 2**doubling
            outcome = self.instance.minimise(most, deadline=self.deadline, starts=[self.picks])
            if outcome.picks is None or not outcome.proven:
                return None
            after = self._describe(self.rows.at(most), outcome)
            assert after.objective is not None
            assert now.objective is not None
            if after.objective != now.objective:
                layers = enumerate(zip(now.labels, after.labels, strict=True))
                return Change(
                    self.rows.limit(self.problem, self.k, int(most[self.k])),
                    now.objective - after.objective,
                    tuple(LayerChange(layer, old, new) for layer, (old, new) in layers if old != new),
                )
        return None

    def _describe(self, rows: Rows, outcome: Outcome) -> Solution:
        return describe(self.problem, rows, outcome, 0.0)
