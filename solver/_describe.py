"""Picked choices as a Solution, every figure recomputed in Python's integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from inlay.solver._exact import Outcome
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows


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
