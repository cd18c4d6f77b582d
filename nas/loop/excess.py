"""How far a model is above the limits of the budget, by its exact sizes and its measured or predicted times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inlay.nas.job.budget import PEAK, BudgetLimit
from inlay.nas.loop.search import Search
from inlay.nas.pieces.measuring import Measured
from inlay.nas.tables.architecture import Blocks
from inlay.nas.tables.costs import COMPUTE, CostTable, quantities

TOLERANCE = 0.02
"""How far a measured quantity may be above its limit."""
ERRORS = 2.0
"""So many standard errors above a limit a time is not yet known to miss it."""
DOUBT_AT_MOST = 0.05
"""What measures as far above a limit misses it, however little the measurement can tell."""
TIMED = ("runtime", "prefill", "decode", "throughput")


@dataclass(frozen=True)
class Excess:
    """How far one limit is missed: `ratio` 1.05 is 5 % above it, give or take `error`, its standard error."""

    field: str
    quantity: str
    ratio: float
    error: float = 0.0

    @property
    def noise(self) -> float:
        """What a measurement that scatters so cannot tell from the limit."""
        return min(ERRORS * self.error, DOUBT_AT_MOST)

    @property
    def missed(self) -> bool:
        """Whether it is above the limit by more than both the tolerance and the noise; sizes are exact."""
        return self.ratio > 1 + (max(TOLERANCE, self.noise) if self.quantity in TIMED else 0)


def excess_of(
    search: Search, costs: CostTable, architecture: Blocks, measured: Mapping[str, Measured] | None
) -> list[Excess]:
    """Every limit of the job with measured (or, without `measured`, predicted) value over limit; 1 or less is within.

    Times relative to the parent are judged by the paired ratio, absolute ones by the median; sizes are exact.
    """
    found = []
    for scenario in search.job.hardware.scenarios:
        tokens = scenario.batch_size * scenario.generate
        own = quantities(costs.total(scenario.name, architecture), tokens)
        parent = quantities(costs.total(scenario.name, costs.reference(len(architecture))), tokens)
        for limit in search.job.budget:
            if limit.scenario not in (None, scenario.name):
                continue
            times = measured[scenario.name] if measured is not None else None
            ratio, error = _over(limit, own, parent, times, tokens)
            found.append(Excess(f"{scenario.name}.{limit.name}", limit.name, ratio, error))
    return found


def is_measured(limit: BudgetLimit) -> bool:
    """Whether only a run of the whole model tells what it is judged by."""
    return limit.name in (*TIMED, PEAK)


def within(excesses: Sequence[Excess]) -> bool:
    """Whether no limit is missed."""
    return not any(e.missed for e in excesses)


def over_budget(excesses: Sequence[Excess]) -> dict[str, float]:
    """Limits that are missed, each with its value over the limit; empty when the budget is met."""
    return {e.field: e.ratio for e in excesses if e.missed}


def _peak(exact: dict[str, float], held: dict[str, int | None]) -> float:
    """Weights and cache as counted, and the buffers as the engine told them of this very model."""
    return exact["memory"] + (held[COMPUTE] or 0)


def _over(
    limit: BudgetLimit, own: dict[str, float], parent: dict[str, float], times: Measured | None, tokens: int
) -> tuple[float, float]:
    """Value over limit, and its standard error."""
    name = "runtime" if limit.name == "throughput" else limit.name
    if name == PEAK and times is not None and times.held:
        return _peak(own, times.held) / limit.against(_peak(parent, times.parent_held)), 0.0
    if times is None or name not in times.ratios:
        ratio = own[limit.name] / limit.against(parent[limit.name])
        return (1 / ratio if limit.is_lower else ratio), 0.0
    if limit.ratio is not None:
        allowed = 1 / float(limit.ratio) if limit.is_lower else float(limit.ratio)
        return times.ratios[name] / allowed, times.ratios[name] / allowed * times.ratio_errors[name]
    value = float(getattr(times, f"{name}_ns"))
    ratio = limit.against(0) / (tokens * 1e9 / value) if limit.is_lower else value / limit.against(0)
    return ratio, ratio * times.time_errors[name]
