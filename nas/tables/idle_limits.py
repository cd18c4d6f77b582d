"""Limits of a budget that limit nothing, because the parent itself stays below them; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inlay.nas.families import Shape
from inlay.nas.job import BudgetLimit, Scenario
from inlay.nas.job.budget import SCENARIO_FREE, UNITS
from inlay.nas.quantities import show_bytes, show_count, show_seconds
from inlay.nas.variants import ends_parameters, parameters
from inlay.nas.variants.storage import Storage


def parent_sizes(shape: Shape, scenario: Scenario, storage: Storage) -> dict[str, int]:
    """The exact quantities of the parent in a scenario, ends included: `parameters`, and bytes as it is kept."""
    length = scenario.prefill + scenario.generate
    numbers, kv = ends_parameters(shape), 0
    for layer in range(shape.num_layers):
        attention, ffn = shape.parent_entry(layer, "attention"), shape.parent_entry(layer, "ffn")
        numbers += parameters(attention, "attention", shape) + parameters(ffn, "ffn", shape)
        kv += storage.kv(attention, shape, scenario.batch_size, length)
    weights = storage.model(shape, shape.blocks)
    return {"parameters": numbers, "weights": weights, "kv": kv, "memory": weights + kv}


def idle_limits(limits: Iterable[BudgetLimit], parent: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence for each absolute limit, and each scenario in which the parent itself is better than it.

    Args:
        limits: the budget; ratios are refused where they would limit nothing, when the job is read.
        parent: what is known of the parent's quantities, by scenario and name, as a budget counts them.
    """
    found = []
    for limit in limits:
        for scenario, own in parent.items():
            if limit.ratio is not None or limit.name not in own or limit.scenario not in (None, scenario):
                continue
            asked, value = limit.against(own[limit.name]), own[limit.name]
            if asked < value if limit.is_lower else asked > value:
                where = "" if limit.name in SCENARIO_FREE else f" in {scenario}"
                verb = "gives" if limit.is_lower else "takes"
                lower = "raise" if limit.is_lower else "lower"
                found.append(
                    f"{limit.field}: {limit.text} limits nothing{where}: the parent itself {verb} "
                    f"{_shown(limit.name, value)}; {lower} it, or write a ratio such as "
                    f"{'1.5x' if limit.is_lower else '0.6x'}"
                )
    return list(dict.fromkeys(found))


def _shown(name: str, value: float) -> str:
    match UNITS[name]:
        case "ns":
            return show_seconds(value / 1e9)
        case "bytes":
            return show_bytes(value)
        case unit:
            return f"{show_count(value)} {unit}".strip()
