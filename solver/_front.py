"""Fronts: the best architecture at each of many values of one limit or two, in one go."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inlay.solver._checks import ProblemError
from inlay.solver._instance import Instance
from inlay.solver._parts import Limit
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import limit_rows
from inlay.solver._ways import best_of

MAX_POINTS = 10_000


@dataclass(frozen=True)
class Axis:
    """An upper limit to sweep: `points` values of the cost `name`, evenly spaced from `lowest` to `highest`.

    None: from the least that any architecture reaches under the other limits to what the best one costs without this
    limit.
    """

    name: str
    points: int = 50
    lowest: int | None = None
    highest: int | None = None


@dataclass(frozen=True)
class FrontPoint:
    """One answer: its `limits` by name, its `solution`, and whether another is at least as good and as cheap."""

    limits: dict[str, int]
    solution: Solution
    dominated: bool = False


def front(problem: Problem, axes: Sequence[Axis], *, gap: float = 1e-4, time_limit: float = 300.0) -> list[FrontPoint]:
    """The Pareto front over one axis or two, tightest limits first; the problem's other limits hold throughout.

    Each point is within the share `gap` of the best; `time_limit` (seconds) is for all points. One relaxation serves
    them all, and each point starts from the answers beside it. Raises ProblemError for axes that make no sense.
    """
    _check_axes(problem, axes)
    deadline = time.monotonic() + time_limit
    others = [limit for limit in problem.limits if limit.name not in {axis.name for axis in axes}]
    values = [_values(problem, others, axis) for axis in axes]
    open_problem = problem.with_limits(*others, *(Limit(axis.name, upper=0) for axis in axes))
    instances = [Instance(one, limit_rows(one)) for one in open_problem.alternatives]
    cells = list(itertools.product(*(range(len(axis)) for axis in values)))
    picks: list[dict[tuple[int, ...], np.ndarray]] = [{} for _ in instances]
    points = []
    for number, cell in enumerate(cells):
        begin = time.monotonic()
        limits = {axis.name: values[k][cell[k]] for k, axis in enumerate(axes)}
        end = begin + max(0.0, deadline - begin) / (len(cells) - number)
        here = problem.with_limits(*others, *(Limit(name, upper=value) for name, value in limits.items()))
        found = []
        for place, (one, instance) in enumerate(zip(here.alternatives, instances, strict=True)):
            rows, now = limit_rows(one), time.monotonic()
            beside = [picks[place][near] for near in _before(cell) if near in picks[place]]
            own = now + max(0.0, end - now) / (len(instances) - place)
            outcome = instance.minimise(rows.most, gap=gap, deadline=own, starts=beside)
            if outcome.picks is not None:
                picks[place][cell] = outcome.picks
            found.append((one, rows, outcome))
        points.append(FrontPoint(limits, best_of(found, time.monotonic() - begin)[0]))
    return _mark(points, [axis.name for axis in axes])


def _check_axes(problem: Problem, axes: Sequence[Axis]) -> None:
    if not 1 <= len(axes) <= 2 or len({axis.name for axis in axes}) < len(axes):
        raise ProblemError(f"{len(axes)} axes are given; a front is over one limit or two different ones")
    for axis in axes:
        problem.with_limits(Limit(axis.name))
        if axis.points < 1:
            raise ProblemError(f"the axis `{axis.name}` has {axis.points} points; it takes at least 1")
        if axis.lowest is not None and axis.highest is not None and axis.lowest > axis.highest:
            raise ProblemError(f"the axis `{axis.name}` goes from {axis.lowest} to {axis.highest}; turn it round")
    if np.prod([axis.points for axis in axes]) > MAX_POINTS:
        raise ProblemError(f"the front would have more than {MAX_POINTS} points; ask for fewer")


def _values(problem: Problem, others: Sequence[Limit], axis: Axis) -> list[int]:
    lowest, highest = axis.lowest, axis.highest
    free = problem.with_limits(*others)
    if lowest is None:
        reached = [_least(one, axis.name) for one in free.alternatives]
        lowest = min((total for total in reached if total is not None), default=0)
    if highest is None:
        found = [
            (one, (rows := limit_rows(one)), Instance(one, rows).minimise(rows.most, gap=1e-3))
            for one in free.alternatives
        ]
        best = best_of(found, 0.0)[0]
        highest = max(lowest, best.totals.get(axis.name, lowest))
    steps = max(1, axis.points - 1)
    values = [highest - (highest - lowest) * (steps - k) // steps for k in range(axis.points)]
    return list(dict.fromkeys(values if axis.points > 1 else [highest]))


def _least(problem: Problem, name: str) -> int | None:
    """The least total of a cost under the limits; None where nothing meets them."""
    column, rows = problem.cost_names.index(name), limit_rows(problem)
    weight = problem.table.costs[:, column]
    picks = Instance(problem, rows, score=weight).minimise(rows.most).picks
    return None if picks is None else problem.base_costs[column] + int(weight[picks].sum())


def _before(cell: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(*cell[:k], cell[k] - 1, *cell[k + 1 :]) for k in range(len(cell))]


def _mark(points: list[FrontPoint], names: Sequence[str]) -> list[FrontPoint]:
    """Mark what another point beats or, coming earlier, equals."""
    keys: list[tuple[int, ...] | None] = [
        None if (s := point.solution).objective is None else (s.objective, *(s.totals[name] for name in names))
        for point in points
    ]
    marked = []
    for i, (point, mine) in enumerate(zip(points, keys, strict=True)):
        beaten = mine is not None and any(
            other is not None
            and all(theirs <= my for theirs, my in zip(other, mine, strict=True))
            and (other != mine or k < i)
            for k, other in enumerate(keys)
            if k != i
        )
        marked.append(replace(point, dominated=beaten))
    return marked
