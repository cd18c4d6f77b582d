"""Several workloads: at once, each with its own limits; or one to be decided, such as the batch size."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from inlay.solver._checks import ProblemError
from inlay.solver._describe import describe
from inlay.solver._exact import Outcome
from inlay.solver._instance import Instance
from inlay.solver._parts import Limit
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import limit_rows


def stack_scenarios(problems: Mapping[str, Problem]) -> Problem:
    """One problem whose costs are those of every scenario, written `chat.runtime`, each under its own limits.

    The problems list the same choices in the same order with the same scores. Raises ProblemError otherwise.
    """
    if not problems:
        raise ProblemError("no scenarios are given; give at least one")
    name, first = next(iter(problems.items()))
    for other, problem in problems.items():
        if _shape(problem) != _shape(first):
            raise ProblemError(f"the scenarios `{name}` and `{other}` differ in choices, scores or pair terms")
    layers = []
    for here in zip(*(problem.layers for problem in problems.values()), strict=True):
        layers.append(
            tuple(
                replace(same[0], costs=tuple(cost for choice in same for cost in choice.costs))
                for same in zip(*here, strict=True)
            )
        )
    return Problem(
        tuple(f"{scenario}.{cost}" for scenario, problem in problems.items() for cost in problem.cost_names),
        tuple(layers),
        tuple(cost for problem in problems.values() for cost in problem.base_costs),
        tuple(
            Limit(f"{scenario}.{limit.name}", limit.upper, limit.lower)
            for scenario, problem in problems.items()
            for limit in problem.limits
        ),
        first.pairs,
    )


def _shape(problem: Problem) -> object:
    layers = [[(choice.label, choice.score, choice.layers) for choice in layer] for layer in problem.layers]
    return layers, problem.pairs


@dataclass(frozen=True)
class Candidate:
    """One setting that may be decided for, a batch size for example: its problem, and the `amount` that it delivers.

    Candidates are compared by (objective + `base_objective`) / `amount`: with runtimes as scores and tokens as amounts,
    the best is the highest throughput; with the amount 1 everywhere it is the least score.
    """

    name: str
    problem: Problem
    amount: int = 1
    base_objective: int = 0


@dataclass(frozen=True)
class Decision:
    """The candidate decided for, None when none has an answer, and its solution.

    `bounds` has by name what each candidate cannot go below (objective / amount), None when it cannot meet its limits.
    """

    name: str | None
    solution: Solution
    bounds: dict[str, Fraction | None]


def decide(candidates: Sequence[Candidate], *, gap: float = 0.0, time_limit: float = 60.0) -> Decision:
    """The best architecture over all candidates, each solved only as far as it could still beat the best so far.

    The solution is optimal when it is proven for every candidate. Raises ProblemError when there are none, names repeat
    or an amount is below 1.
    """
    if not candidates or len({candidate.name for candidate in candidates}) < len(candidates):
        raise ProblemError("give at least one candidate, each with its own name")
    for candidate in candidates:
        if candidate.amount < 1:
            raise ProblemError(f"the candidate `{candidate.name}` has the amount {candidate.amount}; it is at least 1")
    begin = time.monotonic()
    deadline = begin + time_limit
    best: tuple[Fraction, str, Solution] | None = None
    bounds: dict[str, Fraction | None] = {}
    proven = True
    for candidate, problem in ((each, one) for each in candidates for one in each.problem.alternatives):
        rows = limit_rows(problem)
        at_most = math.inf
        if best is not None:
            at_most = float(math.floor(best[0] * candidate.amount) - candidate.base_objective)
        outcome = Instance(problem, rows).minimise(rows.most, gap=gap, deadline=deadline, at_most=at_most)
        proven = proven and outcome.proven
        known = [each for each in (bounds.get(candidate.name), _bound(candidate, outcome)) if each is not None]
        bounds[candidate.name] = min(known, default=None)
        if outcome.picks is None:
            continue
        solution = describe(problem, rows, outcome, time.monotonic() - begin)
        assert solution.objective is not None
        share = _share(candidate, solution.objective)
        if best is None or share < best[0]:
            best = (share, candidate.name, solution)
    seconds = time.monotonic() - begin
    if best is None:
        return Decision(None, Solution("infeasible" if proven else "unknown", seconds=seconds), bounds)
    status = "optimal" if proven and best[2].status == "optimal" else "feasible"
    return Decision(best[1], replace(best[2], status=status, seconds=seconds), bounds)


def _bound(candidate: Candidate, outcome: Outcome) -> Fraction | None:
    return None if outcome.bound is None else _share(candidate, outcome.bound)


def _share(candidate: Candidate, objective: int) -> Fraction:
    return Fraction(objective + candidate.base_objective, candidate.amount)
