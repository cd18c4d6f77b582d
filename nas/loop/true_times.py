"""The times that a candidate is judged and reported by: measured here, or those of a given cost table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from inlay.cluster.pieces import Piece
from inlay.cluster.records import other_records
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.conditions import conditions_of, timed_question, workload_of
from inlay.nas.loop.search import Search
from inlay.nas.loop.together import Question, Records, answer_of
from inlay.nas.pieces.measuring import Measured, time_architectures
from inlay.nas.pieces.stage import Stage
from inlay.nas.report.sentences import counted
from inlay.nas.tables.architecture import Blocks, cache_form, ends_form, identify
from inlay.nas.tables.costs import TIMES, CostTable
from inlay.nas.variants.entries import entries_of

TRUE_TIMES = Stage("true_times", 6, time_architectures)


def times_are_given(search: Search) -> bool:
    """Whether `hardware.costs` gives the times: its device is not here to be measured."""
    return search.job.hardware.costs is not None


def judged_times(
    search: Search, costs: CostTable, architectures: Sequence[Blocks], what: str = ""
) -> list[dict[str, Measured]]:
    """Times by scenario: true ones, or the sums of the given table, so that equal tables choose equal children.

    `what` is what people are told of it; by default the number of candidates.
    """
    what = what or f"times of {counted(len(architectures), 'candidate')}"
    return answer_of(search, times_question(search, costs, architectures), what, "scenarios")


def times_question(
    search: Search, costs: CostTable, architectures: Sequence[Blocks]
) -> Question[list[dict[str, Measured]]]:
    """What `judged_times` asks: nothing where the times are given."""
    if not times_are_given(search):
        return _measure_question(search, architectures)
    given = [
        {s.name: _summed(costs, s.name, architecture) for s in search.job.hardware.scenarios}
        for architecture in architectures
    ]
    return Question([], lambda records: given)


def _summed(costs: CostTable, scenario: str, architecture: Blocks) -> Measured:
    own = costs.total(scenario, architecture)
    parent = costs.total(scenario, costs.reference(len(architecture)))
    exact = dict.fromkeys(TIMES, 0.0)
    return Measured(
        own["prefill_ns"],
        own["decode_ns"],
        own["runtime_ns"],
        0,
        exact,
        {name: own[f"{name}_ns"] / parent[f"{name}_ns"] for name in TIMES},
        exact,
        {f"{name}_ns": parent[f"{name}_ns"] for name in TIMES},
    )


def measure(search: Search, architectures: Sequence[Blocks], what: str) -> list[dict[str, Measured]]:
    """True times by scenario, in the order given; `what` is what people are told of it.

    What was never measured under a scenario's conditions is, all of it in turns with one parent.
    """
    return answer_of(search, _measure_question(search, architectures), what, "scenarios")


def _measure_question(search: Search, architectures: Sequence[Blocks]) -> Question[list[dict[str, Measured]]]:
    scenarios = search.job.hardware.scenarios
    conditions = {scenario.name: conditions_of(search, scenario, TRUE_TIMES.version) for scenario in scenarios}
    known = _known(search, conditions.values())
    pieces: list[tuple[Scenario, Piece]] = []
    for scenario in scenarios:
        held = known[conditions[scenario.name]]
        new = {name: a for a in architectures if (name := identify(a)) not in held}
        if new:
            pieces.append((scenario, _piece(search, scenario, conditions[scenario.name], new)))
    timed = timed_question(search, pieces)

    def read(records: Records) -> list[dict[str, Measured]]:
        for (scenario, _), record in zip(pieces, timed.read(records), strict=True):
            known[conditions[scenario.name]] |= {
                name: Measured(**found) for name, found in record.values["measured"].items()
            }
        return [{s.name: known[conditions[s.name]][identify(a)] for s in scenarios} for a in architectures]

    return Question(timed.pieces, read, timed.alone)


def _known(search: Search, conditions: Iterable[str]) -> dict[str, dict[str, Measured]]:
    """What was measured before, by conditions and architecture, whatever it was measured beside."""
    store = search.workspace.store
    for key, record in other_records(store, TRUE_TIMES.name, search.times_read).items():
        search.times_read[key] = dict(record.values)
    known: dict[str, dict[str, Measured]] = {name: {} for name in conditions}
    for _, values in sorted(search.times_read.items()):
        if values.get("conditions") in known:
            known[values["conditions"]] |= {name: Measured(**found) for name, found in values["measured"].items()}
    return known


def _piece(search: Search, scenario: Scenario, conditions: str, architectures: dict[str, Blocks]) -> Piece:
    first, more = next(iter(architectures)), len(architectures) - 1
    settings = {
        "architectures": {name: entries_of(search.parent.shape, blocks) for name, blocks in architectures.items()},
        "whole": {name: [ends_form(blocks), cache_form(blocks)] for name, blocks in architectures.items()},
        "workload": asdict(workload_of(scenario)),
        "conditions": conditions,
    }
    label = f"{first}{f'+{more}' if more else ''} in {scenario.name}"
    return search.piece(TRUE_TIMES, label, settings | search.engine_arguments, settings)
