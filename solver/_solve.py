"""Solve: one optimal architecture, or a pool in which each differs from every earlier one."""

from __future__ import annotations

import time
from fractions import Fraction

from inlay.solver._checks import ProblemError
from inlay.solver._instance import Instance
from inlay.solver._plain import Plain
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import limit_rows
from inlay.solver._ways import Solver, Way, look

BACKENDS = ("auto", "highs", "cbc")


def solve(
    problem: Problem,
    *,
    solutions: int = 1,
    min_difference: float = 0.2,
    time_limit: float = 60.0,
    gap: float = 0.0,
    pool_gap: float | None = None,
    backend: str = "auto",
) -> list[Solution]:
    """The best architecture, then up to `solutions - 1` more, each optimal subject to differing from every earlier one.

    `min_difference` is the least share of layers in which two solutions differ, whichever of the problem's alternatives
    they are of; `time_limit` is in seconds for the whole call. A search ends early once its answer is proven to be
    within the share `gap` of the best (`pool_gap` for all but the first, the same when None). `backend` is `auto` (the
    exact solver), or `highs` or `cbc`: the plain program, proven to the back end's own tolerance. The list is shorter
    when no more solutions exist; when nothing meets the limits it has one entry, `infeasible`, or `unknown` when time
    ran out before any answer. Raises ProblemError for settings out of range.
    """
    pool_gap = gap if pool_gap is None else pool_gap
    _check_settings(solutions, min_difference, time_limit, backend, min(gap, pool_gap))
    deadline = time.monotonic() + time_limit
    min_layers = max(1, -int(-(Fraction(str(min_difference)) * len(problem.layers)) // 1))
    ways = [Way(one, limit_rows(one), _solver(one, solutions, backend)) for one in problem.alternatives]
    found: list[Solution] = []
    for k in range(solutions):
        begin = time.monotonic()
        # The first may take half of the time, each other an equal share of what is left.
        share = 1 / (solutions - k) if k else 1 / min(2, solutions)
        solution, picks = look(ways, pool_gap if k else gap, begin + max(0.0, deadline - begin) * share)
        if picks is None:
            return found or [solution]
        found.append(solution)
        if k + 1 < solutions:
            for way in ways:
                way.differ(picks, min_layers)
    return found


def _solver(problem: Problem, solutions: int, backend: str) -> Solver:
    rows = limit_rows(problem)
    return Instance(problem, rows, spare=solutions) if backend == "auto" else Plain(problem, rows, backend)


def _check_settings(solutions: int, min_difference: float, time_limit: float, backend: str, gap: float) -> None:
    if solutions < 1:
        raise ProblemError(f"`solutions` is {solutions}; ask for at least 1")
    if not 0 <= min_difference <= 1:
        raise ProblemError(f"`min_difference` is {min_difference}; it is a share of the layers, from 0 to 1")
    if not time_limit > 0:
        raise ProblemError(f"`time_limit` is {time_limit} seconds; it must be above 0")
    if not gap >= 0:
        raise ProblemError(f"`gap` is {gap}; it is a share of the objective, at least 0")
    if backend not in BACKENDS:
        raise ProblemError(f"`backend` is `{backend}`; use one of {', '.join(BACKENDS)}")
