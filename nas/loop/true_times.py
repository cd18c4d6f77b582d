"""The times that a candidate is judged and reported by: measured here, or those of a given cost table."""

from __future__ import annotations

from inlay.nas.loop.candidates import Blocks, Measured, measure
from inlay.nas.loop.search import Search
from inlay.nas.tables.costs import TIMES, CostTable
from inlay.nas.tables.problem import PARENT_BLOCK


def times_are_given(search: Search) -> bool:
    """Whether `hardware.costs` gives the times: its device is not here to be measured."""
    return search.job.hardware.costs is not None


def judged_times(search: Search, costs: CostTable, architecture: Blocks) -> dict[str, Measured]:
    """Times by scenario: true ones, or the sums of the given table, so that equal tables choose equal children."""
    if not times_are_given(search):
        return measure(search, architecture)
    return {s.name: _summed(costs, s.name, architecture) for s in search.job.hardware.scenarios}


def _summed(costs: CostTable, scenario: str, architecture: Blocks) -> Measured:
    own = costs.total(scenario, architecture)
    parent = costs.total(scenario, [PARENT_BLOCK] * len(architecture))
    names = [f"{name}_ns" for name in TIMES]
    return Measured(
        own["prefill_ns"],
        own["decode_ns"],
        own["runtime_ns"],
        0,
        {name: own[f"{name}_ns"] / parent[f"{name}_ns"] for name in TIMES},
        {name: parent[name] for name in names},
    )
