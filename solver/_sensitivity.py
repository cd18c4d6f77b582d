"""Sensitivity: what a little more or less of a limit would buy, and which layers change first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inlay.solver._describe import describe
from inlay.solver._exact import Outcome
from inlay.solver._instance import Instance
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, limit_rows

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
    ways = [_Way(one, rows, Instance(one, rows)) for one in problem.alternatives for rows in (limit_rows(one),)]
    answer = _best(ways, [way.rows for way in ways], deadline, [])
    if answer is None:
        return []
    rows = ways[0].rows
    found = []
    for k, (name, side) in enumerate(zip(rows.names, rows.sides, strict=True)):
        limit = rows.limit(problem, k, int(rows.most[k]))
        step = max(1, (steps or {}).get(name, abs(limit) // 1000))
        moved = _Moved(ways, k, answer, deadline)
        changes = (moved.first_change(step), moved.first_change(-step))
        found.append(Sensitivity(name, side, limit, step, float(answer.outcome.prices[k]), *changes))
    return found


@dataclass(frozen=True)
class _Way:
    """One of the problem's alternatives."""

    problem: Problem
    rows: Rows
    instance: Instance


@dataclass(frozen=True)
class _Answer:
    """The best of all alternatives; `proven` when none of them can have a better one."""

    solution: Solution
    outcome: Outcome
    picks: np.ndarray
    proven: bool


def _best(ways: Sequence[_Way], rows: Sequence[Rows], deadline: float, starts: Sequence[np.ndarray]) -> _Answer | None:
    """The best answer under these rows, one set an alternative; None where none has any."""
    outcomes = [
        way.instance.minimise(own.most, deadline=deadline, starts=starts) for way, own in zip(ways, rows, strict=True)
    ]
    answers = [
        _Answer(describe(way.problem, own, outcome, 0.0), outcome, outcome.picks, all(each.proven for each in outcomes))
        for way, own, outcome in zip(ways, rows, outcomes, strict=True)
        if outcome.picks is not None
    ]
    return min(answers, key=lambda each: each.solution.objective or 0, default=None)


@dataclass(frozen=True)
class _Moved:
    """Row `k` of a solved problem, to be moved."""

    ways: Sequence[_Way]
    k: int
    now: _Answer
    deadline: float

    def first_change(self, step: int) -> Change | None:
        now = self.now.solution
        for doubling in range(DOUBLINGS):
            rows = [way.rows.at(self._moved(way.rows, step * 2**doubling)) for way in self.ways]
            answer = _best(self.ways, rows, self.deadline, [self.now.picks])
            if answer is None or not answer.proven:
                return None
            after = answer.solution
            assert after.objective is not None
            assert now.objective is not None
            if after.objective != now.objective:
                layers = enumerate(zip(now.labels, after.labels, strict=True))
                return Change(
                    rows[0].limit(self.ways[0].problem, self.k, int(rows[0].most[self.k])),
                    now.objective - after.objective,
                    tuple(LayerChange(layer, old, new) for layer, (old, new) in layers if old != new),
                )
        return None

    def _moved(self, rows: Rows, by: int) -> np.ndarray:
        most = rows.most.copy()
        most[self.k] += by
        return most
