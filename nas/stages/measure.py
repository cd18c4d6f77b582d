"""measure: the cost table. Times of every distinct subblock on the target device, sizes counted exactly.

One exclusive piece a scenario: nothing else of the search runs meanwhile. A subblock's time is what four of them add to
a model that has only the ends, measured through the same code that the export runs, in turns with the parent's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from inlay.nas.families import Shape
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.search import Search
from inlay.nas.loop.true_times import environment, workload_of
from inlay.nas.pieces.measuring import measure_subblocks
from inlay.nas.pieces.stage import Stage
from inlay.nas.report.sentences import counted
from inlay.nas.tables.costs import ENDS
from inlay.nas.tables.given_costs import given_costs
from inlay.nas.variants import Variant, ends_parameters, kv_bytes, parameters, variants_of, weights_bytes

MEASURE = Stage("measure", 2, measure_subblocks)


def cost_rows(search: Search) -> list[dict[str, Any]]:
    """The cost table's rows: read from `hardware.costs`, or measured."""
    if search.job.hardware.costs is not None:
        given = search.job.resolve(search.job.hardware.costs)
        names = [scenario.name for scenario in search.job.hardware.scenarios]
        return given_costs(given, names, search.job.space, search.parent.shape)
    rows: list[dict[str, Any]] = []
    search.part(1.0, len(search.job.hardware.scenarios))
    for scenario in search.job.hardware.scenarios:
        times = measure_scenario(search, scenario)
        rows += scenario_rows(search, scenario, times)
    return rows


def measure_scenario(search: Search, scenario: Scenario) -> dict[str, dict[str, int]]:
    """Times by subblock key (`slot entry`) and `ends`, each `prefill_ns, decode_ns, runtime_ns, spread_ns`."""
    entries = sorted({entry_key(v.slot, v.entry(s, layer)) for s, layer, v in _all_variants(search)})
    workload = workload_of(scenario)
    piece = search.piece(
        MEASURE,
        f"scenario {scenario.name}",
        {"entries": entries, "workload": asdict(workload)},
        {"entries": entries, "workload": asdict(workload), "environment": environment(search)},
    )
    (record,) = search.run([piece], f"times of {counted(len(entries), 'subblock')} in {scenario.name}", exclusive=True)
    return {key: dict(times) for key, times in record.values["times"].items()}


def scenario_rows(search: Search, scenario: Scenario, times: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Rows of one scenario: every variant at every layer with its measured times and exact sizes, then the ends."""
    length = scenario.prefill + scenario.generate
    rows = []
    for shape, layer, variant in _all_variants(search):
        entry = variant.entry(shape, layer)
        if variant.kind == "no_op":
            continue
        rows.append(
            {
                "scenario": scenario.name,
                "layer": layer,
                "slot": variant.slot,
                "variant": variant.label,
                **times[entry_key(variant.slot, entry)],
                "parameters": parameters(entry, variant.slot, shape),
                "weights_bytes": weights_bytes(entry, variant.slot, shape),
                "kv_bytes": kv_bytes(entry, shape, scenario.batch_size, length) if variant.slot == "attention" else 0,
            }
        )
    shape = search.parent.shape
    ends = ends_parameters(shape)
    layer, slot, label = ENDS
    sizes = {"parameters": ends, "weights_bytes": ends * shape.dtype_bytes, "kv_bytes": 0}
    rows.append({"scenario": scenario.name, "layer": layer, "slot": slot, "variant": label, **times["ends"], **sizes})
    return rows


def entry_key(slot: str, entry: dict[str, Any]) -> str:
    """A subblock's shape as text: equal shapes are measured once, whatever the layer."""
    return f"{slot} {json.dumps(entry, sort_keys=True)}"


def _all_variants(search: Search) -> Sequence[tuple[Shape, int, Variant]]:
    shape = search.parent.shape
    return [(shape, layer, v) for layer in range(shape.num_layers) for v in variants_of(search.job.space, shape, layer)]
