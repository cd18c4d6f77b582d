"""solve: the tables as a problem, a diverse pool under the budget, and an answer when there is none.

No torch on import: `inlay solve` on a workspace goes through `load_problem`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from inlay.nas.errors import InfeasibleError
from inlay.nas.job.budget import BudgetLimit
from inlay.nas.quantities import show_bytes, show_count, show_seconds
from inlay.nas.tables.architecture import architecture_of, identify
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import NANO, TableProblem, build_problem
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.workspace import Workspace
from inlay.solver import Nearest, Problem, Solution, explain_infeasible, solve

POOL_GAP = 1e-3
"""Share of the objective within which the solutions of a pool after the first are proven: their true KL ranks them."""


@dataclass(frozen=True)
class Tables:
    """What solving needs: scores, costs, and the tokens that a scenario generates."""

    scores: ScoreTable
    costs: CostTable
    tokens: dict[str, int]

    def problem(self, limits: Iterable[BudgetLimit]) -> Problem:
        """The solver's problem under these limits."""
        return build_problem(self.scores, self.costs, limits, self.tokens)


def load_tables(workspace: Workspace) -> Tables:
    """The tables of a workspace; UserError when the search has not come to them yet."""
    workspace.require()
    scores = ScoreTable.of(workspace.read_table("scores"))
    costs = CostTable(workspace.read_table("costs"))
    tokens = {row["scenario"]: int(row["generated_tokens"]) for row in workspace.read_table("scenarios")}
    factors = workspace.find_json("tables/corrections.json") or []
    held = {(int(row["layer"]), tuple(row["block"])): float(row["factor"]) for row in factors}
    return Tables(replace(scores, factors=held), costs, tokens)


def load_problem(workspace: Workspace, limits: Iterable[BudgetLimit] = ()) -> tuple[Problem, dict[str, Any]]:
    """The problem of a workspace's tables, and what is known about it: scenarios, gamma, the parent's totals."""
    tables = load_tables(workspace)
    problem = tables.problem(limits)
    parent = tuple(0 for _ in problem.layers)
    totals = {
        name: base + sum(layer[0].costs[position] for layer in problem.layers)
        for position, (name, base) in enumerate(zip(problem.cost_names, problem.base_costs, strict=True))
    }
    meta = {
        "scenarios": tables.costs.scenarios,
        "gamma": tables.scores.gammas.common,
        "parent_totals": totals,
        "parent": parent,
    }
    return problem, meta


def solve_pool(problem: Problem, pool: int, min_difference: float, time_limit: float) -> list[Solution]:
    """Up to `pool` solutions, the best first, each differing from every earlier one in `min_difference` of the layers.

    The first is searched to the end, the others until they are proven to be within `POOL_GAP` of the best.

    Raises:
        InfeasibleError: no architecture meets the limits; the text gives the nearest reachable value of each.
    """
    found = solve(problem, solutions=pool, min_difference=min_difference, time_limit=time_limit, pool_gap=POOL_GAP)
    answers = [solution for solution in found if solution.status in ("optimal", "feasible")]
    if not answers:
        raise InfeasibleError(infeasible_sentence(problem, found[0].status, time_limit))
    return answers


def store_solution(workspace: Workspace, problem: Problem, solution: Solution) -> str:
    """Keeps a solution as `solutions/<id>.json` and returns its id, which the architecture decides."""
    architecture = architecture_of(solution.labels)
    name = identify(architecture)
    limits = {limit.name: {"upper": limit.upper, "lower": limit.lower} for limit in problem.limits}
    values = {
        "id": name,
        "architecture": [list(block) for block in architecture],
        "status": solution.status,
        "predicted_kl_nats": solution.objective / NANO if solution.objective is not None else None,
        "gap": solution.gap,
        "totals": dict(solution.totals),
        "limits": limits,
        "binding": list(solution.binding),
    }
    before = workspace.find_json(f"solutions/{name}.json") or {}
    workspace.write_json(f"solutions/{name}.json", {**before, **values})
    return name


def infeasible_sentence(problem: Problem, status: str, time_limit: float) -> str:
    """What is reachable: each limit alone and beside the others, which of them conflict, and all of them together.

    Args:
        problem: the problem with its limits.
        status: what the solver said: `infeasible`, or `unknown` when time ran out.
        time_limit: seconds to look for the explanation.
    """
    if status == "unknown":
        return "budget: no architecture was found within solve.time_limit; give the solver more time or a looser budget"
    opening = "budget: no architecture of the search space meets it"
    try:
        told = explain_infeasible(problem, time_limit=max(time_limit, 1.0))
    except TimeoutError:
        return f"{opening}; why was not found within solve.time_limit: raise it, loosen the budget or widen `space`"
    assert told is not None, "the solver proved the limits infeasible"
    parts = [
        f"{near.name} reaches {show_cost(near.name, near.alone)} at least ({share(problem, near.name, near.alone)} of "
        f"the parent; limit {show_cost(near.name, near.asked)}){_beside(problem, near, len(told.nearest))}"
        for near in told.nearest
    ]
    if len(told.conflict) > 1:
        limits = [f"{near.name} at most {show_cost(near.name, near.asked)}" for near in told.conflict]
        parts.append(f"in conflict: {' and '.join(limits)}")
    if len(told.nearest) > 1 and told.together is not None:
        totals = [
            f"{name} {show_cost(name, told.together.totals[name])} ({share(problem, name, told.together.totals[name])})"
            for name in told.cheapest
        ]
        parts.append(f"within reach together: {' and '.join(totals)}")
    return f"{opening}; {'; '.join(parts)}; loosen it or widen `space`"


def _beside(problem: Problem, near: Nearest, num_limits: int) -> str:
    """The nearest value of a limit when the others hold, where there are others."""
    if num_limits == 1:
        return ""
    if near.with_others is None:
        return ", while the other limits cannot be met"
    return f", {show_cost(near.name, near.with_others)} ({share(problem, near.name, near.with_others)}) with the others"


def share(problem: Problem, name: str, value: int) -> str:
    """A total as a ratio to that of the model that the budget is relative to, `0.41x`; where tables do not tell it that
    is the parent, whose own block is the first choice of every layer."""
    whole = problem.reference.get(name) if isinstance(problem, TableProblem) else None
    if whole is None:
        position = problem.cost_names.index(name)
        whole = problem.base_costs[position] + sum(layer[0].costs[position] for layer in problem.layers)
    return f"{value / max(1, whole):.3f}x"


def show_cost(name: str, value: float) -> str:
    """A cost with its unit."""
    quantity = name.rsplit(".", 1)[-1]
    if quantity in ("runtime", "prefill", "decode"):
        return show_seconds(value / 1e9)
    return show_count(value) if quantity == "parameters" else show_bytes(value)
