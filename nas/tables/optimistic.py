"""What would be chosen if every variant still lost as much of its KL as it may.

A best solution of such scores that holds nothing unfinished is the best one altogether, as long as nothing loses more:
all that it leaves out was given the benefit of every doubt at once. Asked for budgets around the job's, so that
corrected times, and a user who asks again for a little more or less, find what they need.

No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, architecture_of
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import Limit, Problem, solve

WAYS = (0.9, 1.0, 1.1)
"""Budgets that are asked for: shares of the way from the parent's own value to the job's limit, geometrically. Of 0.6x
these are 0.631x, 0.6x and 0.570x."""
GAP = 1e-3
"""Share of the objective within which solutions are proven to be the best; no clock decides which are found."""


def optimistic(scores: ScoreTable, may_lose: Callable[[int, str], float]) -> ScoreTable:
    """The scores if every variant lost as much of its KL as it may; what two change together is composed of these.

    Args:
        scores: as they are.
        may_lose: the share that more training may take away from what stands at a layer by this label.
    """
    measured = {
        layer: {
            block: nats * (1.0 - max(may_lose(layer, label) for label in block))
            for block, nats in held.items()
            if set(block) & set(PARENT_BLOCK)
        }
        for layer, held in scores.measured.items()
    }
    return replace(scores, measured=measured)


def best_around(problem: Problem) -> list[Blocks]:
    """The best architecture under each of the budgets that can be met."""
    found = [solve(budget, gap=GAP, time_limit=math.inf)[0] for budget in budgets_around(problem)]
    return [architecture_of(one.labels) for one in found if one.status in ("optimal", "feasible")]


def budgets_around(problem: Problem) -> Iterator[Problem]:
    """The problem under each of the budgets; a limit that the parent meets stays as it is."""
    for way in WAYS:
        yield problem.with_limits(*(_moved(problem, limit, way) for limit in problem.limits))


def _moved(problem: Problem, limit: Limit, way: float) -> Limit:
    position = problem.cost_names.index(limit.name)
    parent = problem.base_costs[position] + sum(layer[0].costs[position] for layer in problem.layers)
    if way == 1 or limit.upper is None or not 0 < limit.upper < parent:
        return limit
    return replace(limit, upper=int(parent ** (1 - way) * limit.upper**way))
