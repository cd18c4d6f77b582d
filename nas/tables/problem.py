"""From tables to a problem: how scores compose, and how choices, costs and limits are written for the solver.

No torch: this is what `inlay solve` runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inlay.nas.errors import UserError
from inlay.nas.job.budget import BudgetLimit
from inlay.nas.tables.architecture import PARENT_BLOCK, Block
from inlay.nas.tables.costs import CostTable, quantities
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


@dataclass(frozen=True)
class ScoreTable:
    """Scores of blocks at each layer, and what the pool's true KL taught about them.

    Args:
        measured: KL by layer and block, nats; a block differs from the parent at that layer only.
        gamma: how two changes at one layer add up: s = gamma (s_attention + s_ffn).
        factors: corrections of single blocks by (layer, block), 1 where there is none.
    """

    measured: Mapping[int, Mapping[Block, float]]
    gamma: float
    factors: Mapping[tuple[int, Block], float] = field(default_factory=dict)

    @staticmethod
    def of(rows: Iterable[Mapping[str, Any]]) -> ScoreTable:
        """The table of the score stage's rows, with gamma fitted on the pairs among them."""
        measured: dict[int, dict[Block, float]] = {}
        for row in rows:
            measured.setdefault(int(row["layer"]), {})[row["attention"], row["ffn"]] = float(row["kl_nats"])
        return ScoreTable(measured, fit_gamma(measured))

    def blocks(self, layer: int) -> list[Block]:
        """Every block that can be chosen at a layer: all pairs of what was scored alone there, and the parent's own."""
        held = self.measured[layer]
        attention = [PARENT_BLOCK[0], *(a for a, f in held if f == PARENT_BLOCK[1] and a != PARENT_BLOCK[0])]
        ffn = [PARENT_BLOCK[1], *(f for a, f in held if a == PARENT_BLOCK[0] and f != PARENT_BLOCK[1])]
        return [(a, f) for a in attention for f in ffn]

    def score(self, layer: int, block: Block) -> float:
        """The score of a block, nats: measured where it was, else composed; 0 for the parent's own."""
        if block == PARENT_BLOCK:
            return 0.0
        held = self.measured[layer]
        factor = self.factors.get((layer, block), 1.0)
        if block in held:
            return factor * held[block]
        alone = held[block[0], PARENT_BLOCK[1]] + held[PARENT_BLOCK[0], block[1]]
        return factor * self.gamma * alone

    def predict(self, architecture: Sequence[Block]) -> float:
        """The additive prediction of an architecture's KL, nats per token."""
        return sum(self.score(layer, block) for layer, block in enumerate(architecture))


def fit_gamma(measured: Mapping[int, Mapping[Block, float]]) -> float:
    """The ratio of joint scores to single ones, summed over the measured pairs; 1 without pairs."""
    joint = alone = 0.0
    for held in measured.values():
        for (attention, ffn), score in held.items():
            if attention != PARENT_BLOCK[0] and ffn != PARENT_BLOCK[1]:
                joint += score
                alone += held[attention, PARENT_BLOCK[1]] + held[PARENT_BLOCK[0], ffn]
    return joint / alone if alone > 0 else 1.0


def build_problem(
    scores: ScoreTable, costs: CostTable, limits: Iterable[BudgetLimit], tokens: Mapping[str, int]
) -> Problem:
    """The solver's problem: layers x blocks, scores in 1e-9 nats, every cost of every scenario in whole units.

    Args:
        scores: what a block costs in quality.
        costs: what it costs in time and bytes; blocks without a row in some scenario are left out.
        limits: the budget; relative ones are taken of the parent in the same tables.
        tokens: B·G by scenario, for throughput.
    """
    names = [(scenario, name) for scenario in costs.scenarios for name in COSTS]
    layers = []
    for layer in sorted(scores.measured):
        choices = []
        for block in scores.blocks(layer):
            held = {scenario: costs.block(scenario, layer, block) for scenario in costs.scenarios}
            score = max(0, round(scores.score(layer, block) * NANO))
            amounts = tuple(held[scenario][COSTS[name]] for scenario, name in names)
            memory = tuple(held[s]["weights_bytes"] + held[s]["kv_bytes"] for s in costs.scenarios)
            choices.append(Choice(" + ".join(block), score, amounts + memory))
        layers.append(tuple(choices))
    base = [int(costs.ends(scenario)[COSTS[name]]) for scenario, name in names]
    base += [int(costs.ends(s)["weights_bytes"]) + int(costs.ends(s)["kv_bytes"]) for s in costs.scenarios]
    cost_names = [cost_name(costs, scenario, name) for scenario, name in names]
    cost_names += [cost_name(costs, scenario, "memory") for scenario in costs.scenarios]
    return Problem(
        cost_names=tuple(cost_names),
        layers=tuple(layers),
        base_costs=tuple(base),
        limits=tuple(solver_limits(costs, limits, tokens, len(layers))),
    )


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
            parent = quantities(costs.total(scenario, [PARENT_BLOCK] * num_layers), tokens[scenario])
            value = limit.against(parent[limit.name])
            name = limit.name
            if name == "throughput":
                name, value = "runtime", tokens[scenario] * 1e9 / value
            key = cost_name(costs, scenario, name)
            found[key] = min(found.get(key, int(value)), int(value))
    return [Limit(name, upper=value) for name, value in found.items()]
