"""measure: the cost table. Times of every distinct subblock on the target device, sizes counted exactly.

One piece a scenario; where it reads the wall clock nothing else of the search runs meanwhile. A subblock's time is what
a few of them add to a small model (the engine's `skeletons`), measured by what will run the export. What a worker's
machine has measured before, for whichever search, it does not measure again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.nas.engines.engine import Engine, StoodIn
from inlay.nas.engines.registry import kv_formats_of
from inlay.nas.families import Shape
from inlay.nas.families.shape import Entry
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.conditions import conditions_of, environment, run_timed, workload_of
from inlay.nas.loop.search import Search
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import SLOTS, Slot
from inlay.nas.pieces.measuring import measure_subblocks
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.subblock_times import ENDS_NAME, VERSION, cached_key, ends_key, entry_key
from inlay.nas.report.sentences import counted
from inlay.nas.tables.architecture import ORIGINAL_BLOCK, ends_label
from inlay.nas.tables.costs import AT_END, COMPUTE, ENDS, HALF, STAND_IN, stand_in_label, with_cache
from inlay.nas.tables.given_costs import given_costs
from inlay.nas.tables.halves import StandIn
from inlay.nas.tables.origin import Origin, origin_of
from inlay.nas.tables.reading import read_arrow
from inlay.nas.variants import SearchSpace, ends_forms, ends_parameters, parameters, variants_of
from inlay.nas.variants.storage import Storage

TIMES = ("prefill_ns", "decode_ns", "runtime_ns", "spread_ns")
MEASURE = Stage("measure", VERSION, measure_subblocks)


def cost_rows(search: Search) -> list[dict[str, Any]]:
    """The cost table's rows: read from `hardware.costs`, or measured."""
    job, shape = search.job, search.parent.shape
    caches = kv_formats_of(job.hardware)[1:]
    if job.hardware.costs is not None:
        given = job.resolve(job.hardware.costs)
        return given_costs(given, job.hardware, search.target.format, shape, search.space, search.storage, caches)
    original = None if search.original is None else search.original.shape
    counted_rows = CostRows(search.space, shape, search.engine, search.target.format, search.storage, original, caches)
    rows: list[dict[str, Any]] = []
    for scenario, times, compute_bytes in _measured_subblocks(search, counted_rows.entries()):
        rows += counted_rows.of(scenario, times, compute_bytes)
    return rows


def costs_origin(search: Search) -> Origin | None:
    """What the times of the search's cost table are of; None where the job gives a table that does not say it."""
    job, shape = search.job, search.parent.shape
    if job.hardware.costs is not None:
        return origin_of(read_arrow(Path(job.resolve(job.hardware.costs))))
    scenarios = job.hardware.scenarios
    told = environment(search, scenarios[0])
    return Origin.of(search.engine.name, search.target.format, told, shape, scenarios)


def _measured_subblocks(
    search: Search, entries: list[str]
) -> list[tuple[Scenario, dict[str, dict[str, int]], int | None]]:
    """Every scenario's times by subblock key (`slot entry`) and `ends`, each `prefill_ns, decode_ns, runtime_ns,
    spread_ns`, and the bytes that the engine computes in."""
    pieces = []
    for scenario in search.job.hardware.scenarios:
        settings = {"entries": entries, "workload": asdict(workload_of(scenario))}
        depends = {**settings, "conditions": conditions_of(search, scenario, MEASURE.version)}
        pieces.append(
            (scenario, search.piece(MEASURE, f"scenario {scenario.name}", settings | search.engine_arguments, depends))
        )
    records = run_timed(search, pieces, f"times of {counted(len(entries), 'subblock')}")
    return [
        (
            scenario,
            {key: dict(times) for key, times in record.values["times"].items()},
            record.values["compute_bytes"],
        )
        for (scenario, _), record in zip(pieces, records, strict=True)
    ]


@dataclass(frozen=True)
class CostRows:
    """The cost table of a space: which subblocks have to be timed, and the rows that follow from their times.

    Args:
        space: the alternatives.
        shape: the parent's.
        engine: what runs the child.
        form: the format that it stores matrices in.
        storage: how it keeps models.
        original: the shape of what the parent is a child of, whose own subblocks have rows too.
        caches: what keys and values may be stored in beside what the storage does.
    """

    space: SearchSpace
    shape: Shape
    engine: Engine
    form: str
    storage: Storage
    original: Shape | None = None
    caches: tuple[str, ...] = ()

    def entries(self) -> list[str]:
        """Every distinct subblock that has a time, by its key."""
        timed = [(each.slot, each.entry) for each in self._subblocks() if not each.is_absent]
        timed += [held.timed for held in self._stand_ins().values() if held.timed is not None]
        cached = {cached_key(*each, cache) for each in timed if self._has_cache(each[1]) for cache in self.caches}
        return sorted({entry_key(*each) for each in timed} | cached | {ends_key(form) for form in self._ends_forms()})

    def of(
        self, scenario: Scenario, times: Mapping[str, Mapping[str, int]], compute_bytes: int | None
    ) -> list[dict[str, Any]]:
        """Rows of one scenario: every variant at every layer with its measured times and exact sizes, what stands in
        for halves of layers, then the ends.

        Args:
            scenario: the workload.
            times: `TIMES` by subblock key and `ends`.
            compute_bytes: what the engine computes in; None where it does not tell.
        """
        length, shape = scenario.prefill + scenario.generate, self.shape
        storage = self.storage
        rows = []
        for each in self._subblocks():
            entry, its_slot = each.entry, each.slot
            for cache in (None, *(self.caches if self._has_cache(entry) else ())):
                own: dict[str, Any] = dict.fromkeys(TIMES, 0)
                if not each.is_absent:
                    key = entry_key(its_slot, entry) if cache is None else cached_key(its_slot, entry, cache)
                    own = self._placed(scenario, times[key], its_slot, entry, each.layer)
                rows.append(
                    {
                        "scenario": scenario.name,
                        "layer": each.layer,
                        "slot": its_slot,
                        "variant": each.label if cache is None else with_cache(each.label, cache),
                        **own,
                        "parameters": parameters(entry, its_slot, shape),
                        "weights_bytes": storage.weights(entry, its_slot, shape),
                        "kv_bytes": storage.kv(entry, shape, scenario.batch_size, length, cache),
                    }
                )
        layer, slot, label = ENDS
        for name, held in self._stand_ins().items():
            for cache in (None, *(self.caches if held.cache else ())):
                own, own_label = dict.fromkeys(TIMES, 0), stand_in_label(name)
                if held.timed:
                    cached = cache is not None and self._has_cache(held.timed[1])
                    own = dict(times[cached_key(*held.timed, str(cache)) if cached else entry_key(*held.timed)])
                kv = storage.kv(held.cache, shape, scenario.batch_size, length, cache) if held.cache else 0
                sizes = {"parameters": 0, "weights_bytes": held.weights_bytes, "kv_bytes": kv}
                own_label = own_label if cache is None else with_cache(own_label, cache)
                place = {"scenario": scenario.name, "layer": layer, "slot": STAND_IN, "variant": own_label}
                rows.append({**place, **own, **sizes})
        sizes = {"parameters": ends_parameters(shape), "weights_bytes": storage.ends(shape), "kv_bytes": 0}
        rows.append({"scenario": scenario.name, "layer": layer, "slot": slot, "variant": label})
        rows[-1] |= {**times[ENDS_NAME], **sizes, **({} if compute_bytes is None else {COMPUTE: compute_bytes})}
        for form in self._ends_forms():
            place = {"scenario": scenario.name, "layer": layer, "slot": slot, "variant": ends_label(form)}
            rows.append({**place, **times[ends_key(form)], **sizes, "weights_bytes": storage.ends(shape, form)})
        columns = dict.fromkeys(name for row in rows for name in row)
        return [{name: row.get(name) for name in columns} for row in rows]

    def _placed(
        self, scenario: Scenario, times: Mapping[str, int], slot: Slot, entry: Entry, layer: int
    ) -> dict[str, Any]:
        """A subblock's times at its layer, and where a child's layers end with it."""
        half = self.engine.half(entry, slot, self.shape)
        if half is None:
            return dict(times)
        own: dict[str, Any] = {**times, HALF: half}
        if half == "ffn":
            last = self.engine.at_end(times)
            last["runtime_ns"] = last["prefill_ns"] + scenario.generate * last["decode_ns"]
            own |= {column: last[name] for name, column in AT_END.items()}
            if layer == self.shape.num_layers - 1:
                own |= {name: last[name] for name in AT_END}
        return own

    def _has_cache(self, entry: Entry) -> bool:
        return self.storage.kv(entry, self.shape, 1, 1) > 0

    def _ends_forms(self) -> tuple[str, ...]:
        return ends_forms(self.space, self.shape) if self.engine.stores_ends_apart else ()

    def _stand_ins(self) -> Mapping[StandIn, StoodIn]:
        """What may stand in for something: nothing where every child's layers are whole."""
        halves = {
            None
            if v.is_free or v.is_absent(self.shape, layer)
            else self.engine.half(v.entry(self.shape, layer), v.slot, self.shape)
            for layer in range(self.shape.num_layers)
            for v in variants_of(self.space, self.shape, layer)
        }
        halves |= {self.engine.half(each.entry, each.slot, self.shape) for each in self._originals()}
        return self.engine.stand_ins(self.shape, self.form) if halves - {"attention", "ffn"} else {}

    def _subblocks(self) -> Iterator[_Subblock]:
        """What has a row: a no-op has none."""
        for layer in range(self.shape.num_layers):
            for variant in variants_of(self.space, self.shape, layer):
                if not variant.is_free:
                    yield _Subblock(layer, variant.slot, variant.label, variant.entry(self.shape, layer))
        yield from self._originals()

    def _originals(self) -> Iterator[_Subblock]:
        if self.original is None:
            return
        for layer in range(self.original.num_layers):
            for slot, label in zip(SLOTS, ORIGINAL_BLOCK, strict=True):
                yield _Subblock(layer, slot, label, self.original.parent_entry(layer, slot))


@dataclass(frozen=True)
class _Subblock:
    """What may stand at a place, by what it is called there."""

    layer: int
    slot: Slot
    label: str
    entry: Entry

    @property
    def is_absent(self) -> bool:
        """Whether nothing stands there: no weights, no cache, no time."""
        return SUBBLOCKS.of(self.entry).absent
