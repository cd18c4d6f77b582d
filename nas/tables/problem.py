"""From tables to a problem: how choices, costs and limits are written for the solver.

No torch: this is what `inlay solve` runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from inlay.nas.errors import UserError
from inlay.nas.job.budget import PEAK, BudgetLimit
from inlay.nas.tables.architecture import PARENT_BLOCK, cache_form, choice_label, ends_form, spread
from inlay.nas.tables.costs import COMPUTE, CostTable, quantities
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import Choice, Limit, Problem

NANO = 1_000_000_000
COSTS = {
    "runtime": "runtime_ns",
    "prefill": "prefill_ns",
    "decode": "decode_ns",
    "weights": "weights_bytes",
    "kv": "kv_bytes",
    "parameters": "parameters",
}


UNKNOWN_PEAK = (
    "the cost table does not tell the engine's compute buffers, so no peak is known; limit `memory`, which is weights "
    "and cache"
)


@dataclass(frozen=True)
class TableProblem(Problem):
    """A problem with the totals, by name, of the model that its budget is relative to."""

    reference: Mapping[str, int] = field(default_factory=dict, compare=False)


def build_problem(
    scores: ScoreTable, costs: CostTable, limits: Iterable[BudgetLimit], tokens: Mapping[str, int]
) -> TableProblem:
    """The solver's problem: layers x blocks, scores in 1e-9 nats, every cost of every scenario in whole units.

    Args:
        scores: what a block costs in quality.
        costs: what it costs in time and bytes; blocks without a row in some scenario are left out.
        limits: the budget; relative ones are taken of the parent in the same tables.
        tokens: B·G by scenario, for throughput.

    Returns:
        The problem of models that have the search's own cache, with those of every other cache as its `others`.
    """
    compute = compute_bytes(costs)
    names = [(scenario, name) for scenario in costs.scenarios for name in COSTS]
    least = {scenario: costs.ends_at_least(scenario) for scenario in costs.scenarios}
    base = [least[scenario][COSTS[name]] for scenario, name in names]
    memory_base = [least[s]["weights_bytes"] + least[s]["kv_bytes"] for s in costs.scenarios]
    base += memory_base
    # The buffers that an engine computes in are a bound for all architectures: they differ by some percent of them.
    base += [own + more for own, more in zip(memory_base, compute, strict=True)] if compute else []
    cost_names = [cost_name(costs, scenario, name) for scenario, name in names]
    cost_names += [cost_name(costs, scenario, "memory") for scenario in costs.scenarios]
    cost_names += [cost_name(costs, scenario, PEAK) for scenario in costs.scenarios] if compute else []
    budget = tuple(limits)
    reference: dict[str, int] = {}
    for scenario in costs.scenarios if budget else ():
        total = quantities(costs.total(scenario, costs.reference(len(scores.measured))), tokens[scenario])
        reference |= {cost_name(costs, scenario, name): round(total[name]) for name in total}
    found = [
        TableProblem(
            cost_names=tuple(cost_names),
            layers=tuple(_layers(scores, costs, cache)),
            base_costs=tuple(base),
            limits=tuple(solver_limits(costs, budget, tokens, len(scores.measured))),
            reference=reference,
        )
        for cache in (None, *(cache_form([(*PARENT_BLOCK, label)]) for label in scores.caches))
    ]
    return replace(found[0], others=tuple(found[1:]))


def _layers(scores: ScoreTable, costs: CostTable, cache: str | None) -> Iterator[tuple[Choice, ...]]:
    """The choices of every layer where keys and values of the whole model are stored so."""
    compute = compute_bytes(costs)
    names = [(scenario, name) for scenario in costs.scenarios for name in COSTS]
    least = {scenario: costs.ends_at_least(scenario) for scenario in costs.scenarios}
    last = max(scores.measured)
    for layer in sorted(scores.measured):
        choices = []
        for block in scores.blocks(layer):
            filled = spread(block)
            reaches = layer + len(filled) > last
            if reaches and cache_form(filled) != cache:
                continue
            held = {scenario: costs.blocks(scenario, layer, filled, cache) for scenario in costs.scenarios}
            if reaches:
                # What stands outside the layers is chosen with the last of them: the base has the least of it.
                for scenario, own in held.items():
                    ends = costs.ends(scenario, ends_form(filled))
                    held[scenario] = {name: own[name] + int(ends[name]) - least[scenario][name] for name in own}
            score = max(0, round(scores.score(layer, block) * NANO))
            amounts = tuple(held[scenario][COSTS[name]] for scenario, name in names)
            memory = tuple(held[s]["weights_bytes"] + held[s]["kv_bytes"] for s in costs.scenarios)
            amounts += memory + (memory if compute else ())
            choices.append(Choice(choice_label(block), score, amounts, len(filled)))
        yield tuple(choices)


def alternative_of(problem: Problem, last: str) -> Problem:
    """The one of a problem's alternatives in which this fills the last layer, by labels which tell them apart."""
    return next(
        one
        for one in problem.alternatives
        if any(
            choice.label == last and layer + choice.layers == len(one.layers)
            for layer, own in enumerate(one.layers)
            for choice in own
        )
    )


def compute_bytes(costs: CostTable) -> list[int]:
    """Bytes that the engine computes in, by scenario; empty where it does not tell them for every one."""
    told = [costs.ends(scenario).get(COMPUTE) for scenario in costs.scenarios]
    return [int(own) for own in told if own is not None] if None not in told else []


def cost_name(costs: CostTable, scenario: str, name: str) -> str:
    """How a quantity is called in a problem: `runtime`, or `chat.runtime` where there are several scenarios."""
    return name if len(costs.scenarios) == 1 else f"{scenario}.{name}"


def solver_limits(
    costs: CostTable, limits: Iterable[BudgetLimit], tokens: Mapping[str, int], num_layers: int
) -> list[Limit]:
    """The budget as limits on the problem's costs, in whole units; a throughput becomes a runtime."""
    found: dict[str, int] = {}
    for limit in limits:
        if limit.scenario is not None and limit.scenario not in costs.scenarios:
            raise UserError(
                f"{limit.field}: there is no scenario `{limit.scenario}`; the tables have {', '.join(costs.scenarios)}"
            )
        for scenario in costs.scenarios if limit.scenario is None else [limit.scenario]:
            parent = quantities(costs.total(scenario, costs.reference(num_layers)), tokens[scenario])
            if limit.name not in parent:
                raise UserError(f"{limit.field}: {UNKNOWN_PEAK}")
            value = limit.against(parent[limit.name])
            name = limit.name
            if name == "throughput":
                name, value = "runtime", tokens[scenario] * 1e9 / value
            key = cost_name(costs, scenario, name)
            found[key] = min(found.get(key, int(value)), int(value))
    return [Limit(name, upper=value) for name, value in found.items()]
