"""Explain why no architecture meets the limits, and what could be reached instead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inlay.solver._describe import describe
from inlay.solver._instance import Instance
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, limit_rows

STEPS = 10_000
"""The common loosening is found to one part in so many of the limits themselves."""

ANY = float("inf")
"""A gap that the first answer closes."""

LAST_SECONDS = 1.0
"""So long, at least, is looked for the best architecture under the loosened limits."""

SIGN = {"upper": "<=", "lower": ">="}


@dataclass(frozen=True)
class Nearest:
    """One side of one limit: the value asked for and the nearest that can be reached.

    `alone` when no other limit holds; `with_others` when all the others do, None when they already exclude each other
    or time ran out.
    """

    name: str
    side: str
    asked: int
    alone: int
    with_others: int | None

    def __str__(self) -> str:
        return f"{self.name} {SIGN[self.side]} {self.asked}"


@dataclass(frozen=True)
class Infeasibility:
    """Why the limits cannot be met.

    `nearest` has one entry a limit and side; `conflict` is a smallest set of them that no architecture meets at once;
    `together` is the best architecture once every limit gives way by the same share `loosened` of itself (of what can
    be reached alone, where that is more), None when time ran out; `cheapest` has the least total of each limited cost.
    """

    nearest: tuple[Nearest, ...]
    conflict: tuple[Nearest, ...]
    together: Solution | None
    loosened: float | None
    cheapest: dict[str, int]


def explain_infeasible(problem: Problem, *, time_limit: float = 20.0) -> Infeasibility | None:
    """What the limits ask for beside what can be reached, in integers; None when some architecture meets them all.

    Of a problem's alternatives the nearest is told; what is in conflict is so in all of them. Raises TimeoutError when
    `time_limit` (seconds) does not suffice to tell whether there is one.
    """
    found = []
    for one in problem.alternatives:
        told = _explained(one, time_limit / len(problem.alternatives))
        if told is None:
            return None
        found.append(told)
    return _joined(found)


def _explained(problem: Problem, time_limit: float) -> Infeasibility | None:
    """Of one alternative."""
    deadline = time.monotonic() + time_limit
    rows = limit_rows(problem)
    whole = Instance(problem, rows)
    feasible = _fits(whole, rows.most, deadline)
    if feasible is None:
        raise TimeoutError(f"{time_limit:g} seconds did not suffice to tell whether the limits can be met")
    if feasible:
        return None
    nearest = [
        Nearest(
            rows.names[k],
            rows.sides[k],
            rows.limit(problem, k, int(rows.most[k])),
            rows.limit(problem, k, _least(problem, rows.coefficients[k])),
            _beside_others(problem, rows, k, deadline),
        )
        for k in range(len(rows.most))
    ]
    conflict = [nearest[k] for k in _conflict(problem, rows, deadline)]
    together, loosened = _together(problem, whole, rows, nearest, deadline)
    cheapest = {
        name: problem.base_costs[column] + _least(problem, problem.table.costs[:, column])
        for column, name in enumerate(problem.cost_names)
        if name in rows.names
    }
    return Infeasibility(tuple(nearest), tuple(conflict), together, loosened, cheapest)


def _joined(found: Sequence[Infeasibility]) -> Infeasibility:
    """What holds of all alternatives, whose limits are the same."""
    sides = [_nearest(each) for each in zip(*(one.nearest for one in found), strict=True)]
    conflict = [side for side in sides if any(str(side) in map(str, one.conflict) for one in found)]
    best = min((one for one in found if one.together is not None), key=_way_to_go, default=found[0])
    cheapest = {name: min(one.cheapest[name] for one in found) for name in found[0].cheapest}
    return Infeasibility(tuple(sides), tuple(conflict), best.together, best.loosened, cheapest)


def _way_to_go(told: Infeasibility) -> tuple[float, int]:
    """How far limits have to give way, and what is reached then."""
    assert told.together is not None
    return told.loosened or 0.0, told.together.objective or 0


def _nearest(found: Sequence[Nearest]) -> Nearest:
    """One limit: what the alternative that comes nearest reaches."""
    alone = [each.alone for each in found]
    beside = [each.with_others for each in found if each.with_others is not None]
    if found[0].side == "upper":
        return replace(found[0], alone=min(alone), with_others=min(beside, default=None))
    return replace(found[0], alone=max(alone), with_others=max(beside, default=None))


def _fits(instance: Instance, most: np.ndarray, deadline: float) -> bool | None:
    """Whether some answer has rows at most `most`; None when time ran out."""
    outcome = instance.minimise(most, gap=ANY, deadline=deadline)
    return True if outcome.picks is not None else False if outcome.proven else None


def _least(problem: Problem, weight: np.ndarray) -> int:
    """The least total of `weight` [N], whatever the limits."""
    outcome = Instance(problem, limit_rows(problem).only([]), score=weight).minimise(np.zeros(0, dtype=np.int64))
    assert outcome.picks is not None
    return int(weight[outcome.picks].sum())


def _beside_others(problem: Problem, rows: Rows, k: int, deadline: float) -> int | None:
    """The nearest total that the cost of row k can have under all other rows."""
    rest = rows.only([other for other in range(len(rows.most)) if other != k])
    weight = rows.coefficients[k]
    outcome = Instance(problem, rest, score=weight).minimise(rest.most, deadline=deadline)
    if outcome.picks is None or not outcome.proven:
        return None
    return rows.limit(problem, k, int(weight[outcome.picks].sum()))


def _conflict(problem: Problem, rows: Rows, deadline: float) -> list[int]:
    """A set of rows that exclude each other, none of which can be left out."""
    kept = list(range(len(rows.most)))
    for k in range(len(rows.most)):
        rest = rows.only([other for other in kept if other != k])
        if len(rest.most) and _fits(Instance(problem, rest), rest.most, deadline) is False:
            kept.remove(k)
    return kept


def _together(
    problem: Problem, whole: Instance, rows: Rows, nearest: Sequence[Nearest], deadline: float
) -> tuple[Solution | None, float | None]:
    """The least common loosening by halving, and the best architecture under it; None when time ran out before any."""
    low, high = 0, STEPS // 100
    while not _fits(whole, _loosened(rows, nearest, high), deadline):
        if time.monotonic() > deadline:
            return None, None
        low, high = high, high * 4
    while high - low > 1 and time.monotonic() < deadline:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(whole, _loosened(rows, nearest, middle), deadline) else (middle, high)
    most = _loosened(rows, nearest, high)
    outcome = whole.minimise(most, deadline=max(deadline, time.monotonic() + LAST_SECONDS))
    if outcome.picks is None:
        return None, None
    return describe(problem, rows.at(most), outcome, 0.0), high / STEPS


def _loosened(rows: Rows, nearest: Sequence[Nearest], steps: int) -> np.ndarray:
    """The right-hand sides when every limit gives way by steps / STEPS of itself."""
    way = [steps * max(near.asked, near.alone, 1) // STEPS for near in nearest]
    loosened: np.ndarray = rows.most + np.array(way, dtype=np.int64)
    return loosened
