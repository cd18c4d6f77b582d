"""How far a model is above the limits of the budget, by its exact sizes and its measured or predicted times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.nas.job.budget import BudgetLimit
from inlay.nas.loop.search import Search
from inlay.nas.pieces.measuring import Measured
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks
from inlay.nas.tables.costs import CostTable, quantities

TOLERANCE = 0.02
"""How far a measured quantity may be above its limit."""


@dataclass(frozen=True)
class Excess:
    """How far one limit is missed: `ratio` 1.05 is 5 % above it."""

    field: str
    quantity: str
    ratio: float


def excess_of(
    search: Search, costs: CostTable, architecture: Blocks, measured: dict[str, Measured] | None
) -> list[Excess]:
    """Every limit of the job with measured (or, without `measured`, predicted) value over limit; 1 or less is within.

    Times relative to the parent are judged by the paired ratio, absolute ones by the median; sizes are exact.
    """
    found = []
    for scenario in search.job.hardware.scenarios:
        tokens = scenario.batch_size * scenario.generate
        own = quantities(costs.total(scenario.name, architecture), tokens)
        parent = quantities(costs.total(scenario.name, [PARENT_BLOCK] * len(architecture)), tokens)
        for limit in search.job.budget:
            if limit.scenario not in (None, scenario.name):
                continue
            times = measured[scenario.name] if measured is not None else None
            found.append(Excess(f"{scenario.name}.{limit.name}", limit.name, _over(limit, own, parent, times, tokens)))
    return found


def within(excesses: Sequence[Excess]) -> bool:
    """Whether every limit is met within the tolerance; sizes are exact and have none."""
    return all(
        e.ratio <= (1 + TOLERANCE if e.quantity in ("runtime", "prefill", "decode", "throughput") else 1)
        for e in excesses
    )


def over_budget(
    search: Search, costs: CostTable, architecture: Blocks, measured: dict[str, Measured]
) -> dict[str, float]:
    """Limits that are missed beyond the tolerance, each with its value over the limit; empty when the budget is met."""
    excesses = excess_of(search, costs, architecture, measured)
    return {e.field: e.ratio for e in excesses if not within([e])}


def _over(
    limit: BudgetLimit, own: dict[str, float], parent: dict[str, float], times: Measured | None, tokens: int
) -> float:
    name = "runtime" if limit.name == "throughput" else limit.name
    if times is None or name not in times.ratios:
        ratio = own[limit.name] / limit.against(parent[limit.name])
        return 1 / ratio if limit.is_lower else ratio
    if limit.ratio is not None:
        allowed = 1 / float(limit.ratio) if limit.is_lower else float(limit.ratio)
        return times.ratios[name] / allowed
    value = float(getattr(times, f"{name}_ns"))
    if limit.is_lower:
        return limit.against(0) / (tokens * 1e9 / value)
    return value / limit.against(0)
