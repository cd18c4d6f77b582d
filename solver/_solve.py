"""Solve: one optimal architecture, or a pool in which each differs from every earlier one."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from inlay.solver._checks import ProblemError
from inlay.solver._exact import Outcome
from inlay.solver._instance import Instance
from inlay.solver._plain import Plain
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, agreement, limit_rows

BACKENDS = ("auto", "highs", "cbc")


class Solver(Protocol):
    """What finds one answer after another under the same rows and those added since."""

    def minimise(self, most: np.ndarray, *, gap: float, deadline: float, at_least: float) -> Outcome:
        """The best picks (table indices) with rows at most `most`; none is below `at_least`."""

    def add_row(self, coefficients: np.ndarray) -> None:
        """One more row over the table's choices."""


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

    `min_difference` is the least share of layers in which two solutions differ; `time_limit` is in seconds for the
    whole call. A search ends early once its answer is proven to be within the share `gap` of the best (`pool_gap` for
    all but the first, the same when None). `backend` is `auto` (the exact solver), or `highs` or `cbc`: the plain
    program, proven to the back end's own tolerance. The list is shorter when no more solutions exist; when nothing
    meets the limits it has one entry, `infeasible`, or `unknown` when time ran out before any answer. Raises
    ProblemError for settings out of range.
    """
    pool_gap = gap if pool_gap is None else pool_gap
    _check_settings(solutions, min_difference, time_limit, backend, min(gap, pool_gap))
    deadline = time.monotonic() + time_limit
    min_layers = max(1, -int(-(Fraction(str(min_difference)) * len(problem.layers)) // 1))
    rows = limit_rows(problem)
    begin = time.monotonic()
    solver: Solver = Instance(problem, rows, spare=solutions) if backend == "auto" else Plain(problem, rows, backend)
    found: list[Solution] = []
    at_least = -math.inf
    for k in range(solutions):
        # The first may take half of the time, each other an equal share of what is left.
        share = 1 / (solutions - k) if k else 1 / min(2, solutions)
        end = begin + max(0.0, deadline - begin) * share
        outcome = solver.minimise(rows.most, gap=pool_gap if k else gap, deadline=end, at_least=at_least)
        seconds = time.monotonic() - begin
        begin = time.monotonic()
        if outcome.picks is None:
            status = "infeasible" if outcome.proven else "unknown"
            return found or [Solution(status, bound=outcome.bound, seconds=seconds)]
        found.append(describe(problem, rows, outcome, seconds))
        if k + 1 < solutions:
            # What comes is held to more than this one was.
            at_least = at_least if outcome.bound is None else outcome.bound
            rows = rows.with_difference(problem, outcome.picks, min_layers)
            solver.add_row(agreement(problem, outcome.picks))
    return found


def describe(problem: Problem, rows: Rows, outcome: Outcome, seconds: float) -> Solution:
    """An outcome with picks as a Solution, every figure recomputed in Python's integers.

    Raises RuntimeError if a limit is broken or a layer is not covered exactly once, which would be a fault of the
    solver.
    """
    assert outcome.picks is not None
    start, span = problem.table.layer[outcome.picks], problem.table.span[outcome.picks]
    if not np.array_equal(np.cumsum(span), np.append(start[1:], problem.table.num_layers)) or start[0] != 0:
        raise RuntimeError("the solver returned an answer that leaves layers out; please report the problem")
    plain = describe_picks(problem, rows, outcome.picks, seconds, "exact")
    if plain.status == "infeasible":
        raise RuntimeError("the solver returned an answer that breaks a limit; please report the problem")
    objective = plain.objective
    assert objective is not None
    bound = None if outcome.bound is None else min(outcome.bound, objective)
    prices = {name: float(p) for name, p in zip(rows.names, outcome.prices, strict=False) if name and p > 0}
    return replace(
        plain,
        status="optimal" if bound == objective else "feasible",
        bound=bound,
        gap=None if bound is None else (objective - bound) / max(1, abs(objective)),
        binding=tuple(prices),
        prices=prices,
    )


def describe_picks(problem: Problem, rows: Rows, picks: np.ndarray, seconds: float, method: str) -> Solution:
    """Picked choices (table indices) as a Solution without a bound: feasible or, where they break a row, infeasible."""
    choices, labels = [-1] * len(problem.layers), [""] * len(problem.layers)
    objective, totals, taken = 0, list(problem.base_costs), set()
    for i in picks.tolist():
        layer = int(problem.table.layer[i])
        index = i - int(problem.table.first[layer])
        choice = problem.layers[layer][index]
        taken.add((layer, index))
        choices[layer] = index
        labels[layer : layer + choice.layers] = [choice.label] * choice.layers
        objective += int(choice.score)
        totals = [total + int(cost) for total, cost in zip(totals, choice.costs, strict=True)]
    objective += sum(int(pair.score) for pair in problem.pairs if pair.first in taken and pair.second in taken)
    return Solution(
        status="infeasible" if len(rows.broken_by(picks)) else "feasible",
        choices=tuple(choices),
        labels=tuple(labels),
        objective=objective,
        totals=dict(zip(problem.cost_names, totals, strict=True)),
        seconds=seconds,
        method=method,
    )


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
