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
from inlay.solver._solve import describe

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
    instance = Instance(open_problem, limit_rows(open_problem))
    cells = list(itertools.product(*(range(len(axis)) for axis in values)))
    picks: dict[tuple[int, ...], np.ndarray] = {}
    points = []
    for number, cell in enumerate(cells):
        begin = time.monotonic()
        limits = {axis.name: values[k][cell[k]] for k, axis in enumerate(axes)}
        rows = limit_rows(problem.with_limits(*others, *(Limit(name, upper=value) for name, value in limits.items())))
        beside = [picks[near] for near in _before(cell) if near in picks]
        end = begin + max(0.0, deadline - begin) / (len(cells) - number)
        outcome = instance.minimise(rows.most, gap=gap, deadline=end, starts=beside)
        seconds = time.monotonic() - begin
        if outcome.picks is None:
            status = "infeasible" if outcome.proven else "unknown"
            points.append(FrontPoint(limits, Solution(status, bound=outcome.bound, seconds=seconds)))
            continue
        picks[cell] = outcome.picks
        points.append(FrontPoint(limits, describe(problem, rows, outcome, seconds)))
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
    column = problem.cost_names.index(axis.name)
    lowest, highest = axis.lowest, axis.highest
    free = problem.with_limits(*others)
    rows = limit_rows(free)
    if lowest is None:
        outcome = Instance(free, rows, score=problem.table.costs[:, column]).minimise(rows.most)
        lowest = 0 if outcome.picks is None else _total(problem, column, outcome.picks)
    if highest is None:
        outcome = Instance(free, rows).minimise(rows.most, gap=1e-3)
        highest = lowest if outcome.picks is None else max(lowest, _total(problem, column, outcome.picks))
    steps = max(1, axis.points - 1)
    values = [highest - (highest - lowest) * (steps - k) // steps for k in range(axis.points)]
    return list(dict.fromkeys(values if axis.points > 1 else [highest]))


def _total(problem: Problem, column: int, picks: np.ndarray) -> int:
    return problem.base_costs[column] + int(problem.table.costs[picks, column].sum())


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
