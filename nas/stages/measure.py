"""measure: the cost table. Times of every distinct subblock on the target device, sizes counted exactly.

One piece a scenario; where it reads the wall clock nothing else of the search runs meanwhile. A subblock's time is what
a few of them add to a small model (the engine's `skeletons`), measured by what will run the export. What a worker's
machine has measured before, for whichever search, it does not measure again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inlay.nas.engines.engine import Engine
from inlay.nas.families import Shape
from inlay.nas.job.sections import Scenario
from inlay.nas.job.space import Space
from inlay.nas.loop.conditions import conditions_of, run_timed, workload_of
from inlay.nas.loop.search import Search
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.pieces.measuring import measure_subblocks
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.subblock_times import ENDS_NAME, VERSION, entry_key
from inlay.nas.report.sentences import counted
from inlay.nas.tables.costs import ENDS
from inlay.nas.tables.given_costs import given_costs
from inlay.nas.variants import Variant, ends_parameters, parameters, variants_of
from inlay.nas.variants.storage import Storage

TIMES = ("prefill_ns", "decode_ns", "runtime_ns", "spread_ns")
MEASURE = Stage("measure", VERSION, measure_subblocks)


def cost_rows(search: Search) -> list[dict[str, Any]]:
    """The cost table's rows: read from `hardware.costs`, or measured."""
    job, shape = search.job, search.parent.shape
    if job.hardware.costs is not None:
        given = job.resolve(job.hardware.costs)
        return given_costs(given, job.hardware, search.target.format, shape, job.space)
    counted_rows = CostRows(job.space, shape, search.engine, search.storage)
    rows: list[dict[str, Any]] = []
    for scenario, times in _measured_subblocks(search, counted_rows.entries()):
        rows += counted_rows.of(scenario, times)
    return rows


def _measured_subblocks(search: Search, entries: list[str]) -> list[tuple[Scenario, dict[str, dict[str, int]]]]:
    """Every scenario's times by subblock key (`slot entry`) and `ends`, each `prefill_ns, decode_ns, runtime_ns,
    spread_ns`."""
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


@dataclass(frozen=True)
class CostRows:
    """The cost table of a space: which subblocks have to be timed, and the rows that follow from their times.

    Args:
        space: the alternatives.
        shape: the parent's.
        engine: what runs the child.
        storage: how it keeps a model.
    """

    space: Space
    shape: Shape
    engine: Engine
    storage: Storage

    def entries(self) -> list[str]:
        """Every distinct subblock that has a time, by its key."""
        there = [(layer, v) for layer, v in self._variants() if not v.is_absent(self.shape, layer)]
        return sorted({entry_key(v.slot, v.entry(self.shape, layer)) for layer, v in there})

    def of(self, scenario: Scenario, times: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
        """Rows of one scenario: every variant at every layer with its measured times and exact sizes, then the ends.

        Args:
            scenario: the workload.
            times: `TIMES` by subblock key and `ends`.
        """
        length, storage, shape = scenario.prefill + scenario.generate, self.storage, self.shape
        rows = []
        for layer, variant in self._variants():
            entry = variant.entry(shape, layer)
            own = dict.fromkeys(TIMES, 0)
            if not variant.is_absent(shape, layer):
                own = self._placed(scenario, times[entry_key(variant.slot, entry)], variant.slot, layer)
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
        layer, slot, label = ENDS
        sizes = {"parameters": ends_parameters(shape), "weights_bytes": storage.ends(shape), "kv_bytes": 0}
        place = {"scenario": scenario.name, "layer": layer, "slot": slot, "variant": label}
        return [*rows, {**place, **times[ENDS_NAME], **sizes}]

    def _placed(self, scenario: Scenario, times: Mapping[str, int], slot: Slot, layer: int) -> dict[str, int]:
        """A subblock's times at its layer."""
        own = self.engine.times_at(times, slot, layer == self.shape.num_layers - 1)
        return own | {"runtime_ns": own["prefill_ns"] + scenario.generate * own["decode_ns"]}

    def _variants(self) -> Iterator[tuple[int, Variant]]:
        """What has a row: a no-op has none."""
        for layer in range(self.shape.num_layers):
            for variant in variants_of(self.space, self.shape, layer):
                if not variant.is_free:
                    yield layer, variant
