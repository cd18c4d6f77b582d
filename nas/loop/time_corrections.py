"""What measured times teach about the cost table: a factor a variant, so that sums come nearer to whole models' times.

A subblock's time is taken in a model of few copies of it; in a whole model caches, and what runs before, differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from inlay.nas.job.budget import Budget
from inlay.nas.loop.ridge import fit_factors
from inlay.nas.pieces.measuring import Measured
from inlay.nas.tables.architecture import Blocks
from inlay.nas.tables.costs import AT_END, COMPUTE, TIMES, CostTable

PACE_WEIGHT = 1e-2
"""Times of whole models scatter by some percent. Of six values from 1e-4 to 0.1 this one predicted the left-out of 31
measured models of two searches best, both taken together."""
LEAST_PACE = 0.2
TIMED_AS = {"throughput": "runtime"}
"""The time that decides a quantity of the budget that is none itself."""


def paced(costs: CostTable, budget: Budget, judged: Sequence[tuple[Blocks, Mapping[str, Measured]]]) -> CostTable:
    """The cost table with every variant's times multiplied by a factor that the measured architectures suggest, and the
    buffers of the ends raised to the largest that any of them has.

    A time that the budget limits relative to the parent is fitted to the measured ratios and the parent's own sum, so
    that a machine which has become slower changes nothing; one that it limits absolutely, to the times themselves.

    Args:
        costs: the table as measured or given.
        budget: the job's limits.
        judged: architectures with their measured times by scenario; without any the table stays as it is.
    """
    if not judged:
        return costs
    rows = [dict(row) for row in costs.rows]
    for scenario in costs.scenarios:
        own = [row for row in rows if row["scenario"] == scenario]
        for row in own:
            if row.get(COMPUTE) is not None:
                row[COMPUTE] = max(row[COMPUTE], *_computed_in(scenario, judged))
        for name in TIMES:
            limits = [limit for limit in budget if TIMED_AS.get(limit.name, limit.name) == name]
            absolute = any(limit.ratio is None and limit.scenario in (None, scenario) for limit in limits)
            factors = _factors(costs, scenario, name, absolute, judged)
            for row in own:
                for column in (f"{name}_ns", AT_END.get(f"{name}_ns", "")):
                    if row.get(column) is not None:
                        row[column] = round(row[column] * factors[str(row["variant"])])
    return CostTable(rows)


def _computed_in(scenario: str, judged: Sequence[tuple[Blocks, Mapping[str, Measured]]]) -> Iterator[int]:
    """Buffers of what was measured: a bound that a whole model broke is raised."""
    for _, measured in judged:
        for held in (measured[scenario].held, measured[scenario].parent_held):
            yield int(held.get(COMPUTE) or 0)


def _factors(
    costs: CostTable,
    scenario: str,
    name: str,
    absolute: bool,
    judged: Sequence[tuple[Blocks, Mapping[str, Measured]]],
) -> dict[str, float]:
    column = f"{name}_ns"
    parent = costs.reference(len(judged[0][0]))
    times = [measured[scenario] for _, measured in judged]
    summed = costs.total(scenario, parent)[column]
    own = median(held.parent[column] for held in times) if absolute else summed
    pace = own / max(1, summed)
    true = [own, *(getattr(held, column) if absolute else held.ratios[name] * own for held in times)]
    terms = []
    for architecture in (parent, *(blocks for blocks, _ in judged)):
        parts: defaultdict[str, float] = defaultdict(float)
        for row in costs.terms(scenario, architecture):
            if row[column]:
                parts[str(row["variant"])] += pace * float(row[column])
        terms.append(parts)
    found = fit_factors(terms, [max(1.0, value) for value in true], PACE_WEIGHT, LEAST_PACE)
    return {str(row["variant"]): pace * found.get(str(row["variant"]), 1.0) for row in costs.rows}
