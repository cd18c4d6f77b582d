"""measure: the cost table. Times of every distinct subblock on the target device, sizes counted exactly.

One piece a scenario; where it reads the wall clock nothing else of the search runs meanwhile. A subblock's time is what
a few of them add to a small model (the engine's `skeletons`), measured by what will run the export.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from inlay.nas.families import Shape
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.conditions import conditions_of, run_timed, workload_of
from inlay.nas.loop.search import Search
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.pieces.measuring import measure_subblocks
from inlay.nas.pieces.stage import Stage
from inlay.nas.report.sentences import counted
from inlay.nas.tables.costs import ENDS
from inlay.nas.tables.given_costs import given_costs
from inlay.nas.variants import Variant, ends_parameters, parameters, variants_of

TIMES = ("prefill_ns", "decode_ns", "runtime_ns", "spread_ns")
MEASURE = Stage("measure", 5, measure_subblocks)


def cost_rows(search: Search) -> list[dict[str, Any]]:
    """The cost table's rows: read from `hardware.costs`, or measured."""
    if search.job.hardware.costs is not None:
        given = search.job.resolve(search.job.hardware.costs)
        names = [scenario.name for scenario in search.job.hardware.scenarios]
        return given_costs(given, names, search.job.space, search.parent.shape)
    rows: list[dict[str, Any]] = []
    for scenario, times in measured_subblocks(search):
        rows += scenario_rows(search, scenario, times)
    return rows


def measured_subblocks(search: Search) -> list[tuple[Scenario, dict[str, dict[str, int]]]]:
    """Every scenario's times by subblock key (`slot entry`) and `ends`, each `prefill_ns, decode_ns, runtime_ns,
    spread_ns`."""
    there = [(variant, shape, layer) for shape, layer, variant in _all_variants(search) if not variant.is_free]
    entries = sorted({entry_key(v.slot, v.entry(s, layer)) for v, s, layer in there if not v.is_absent(s, layer)})
    pieces = []
    for scenario in search.job.hardware.scenarios:
        settings = {"entries": entries, "workload": asdict(workload_of(scenario))}
        depends = {**settings, "conditions": conditions_of(search, scenario, MEASURE.version)}
        pieces.append(
            (scenario, search.piece(MEASURE, f"scenario {scenario.name}", settings | search.engine_arguments, depends))
        )
    records = run_timed(search, pieces, f"times of {counted(len(entries), 'subblock')}")
    return [
        (scenario, {key: dict(times) for key, times in record.values["times"].items()})
        for (scenario, _), record in zip(pieces, records, strict=True)
    ]


def scenario_rows(search: Search, scenario: Scenario, times: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Rows of one scenario: every variant at every layer with its measured times and exact sizes, then the ends."""
    length, storage = scenario.prefill + scenario.generate, search.storage
    rows = []
    for shape, layer, variant in _all_variants(search):
        entry = variant.entry(shape, layer)
        if variant.is_free:
            continue
        own = dict.fromkeys(TIMES, 0)
        if not variant.is_absent(shape, layer):
            own = _placed(search, scenario, times[entry_key(variant.slot, entry)], variant.slot, layer)
        rows.append(
            {
                "scenario": scenario.name,
                "layer": layer,
                "slot": variant.slot,
                "variant": variant.label,
                **own,
                "parameters": parameters(entry, variant.slot, shape),
                "weights_bytes": storage.weights(entry, variant.slot, shape),
                "kv_bytes": storage.kv(entry, shape, scenario.batch_size, length),
            }
        )
    shape = search.parent.shape
    ends = ends_parameters(shape)
    layer, slot, label = ENDS
    sizes = {"parameters": ends, "weights_bytes": storage.ends(shape), "kv_bytes": 0}
    rows.append({"scenario": scenario.name, "layer": layer, "slot": slot, "variant": label, **times["ends"], **sizes})
    return rows


def _placed(search: Search, scenario: Scenario, times: dict[str, int], slot: Slot, layer: int) -> dict[str, int]:
    """A subblock's times at its layer."""
    own = search.engine.times_at(times, slot, layer == search.parent.shape.num_layers - 1)
    return own | {"runtime_ns": own["prefill_ns"] + scenario.generate * own["decode_ns"]}


def entry_key(slot: str, entry: dict[str, Any]) -> str:
    """A subblock's shape as text: equal shapes are measured once, whatever the layer."""
    return f"{slot} {json.dumps(entry, sort_keys=True)}"


def _all_variants(search: Search) -> Sequence[tuple[Shape, int, Variant]]:
    shape = search.parent.shape
    return [(shape, layer, v) for layer in range(shape.num_layers) for v in variants_of(search.job.space, shape, layer)]
