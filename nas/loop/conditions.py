"""Under which conditions times are taken: the clock, the device and the versions; and the pieces that take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from inlay.cluster.pieces import Piece, Record
from inlay.cluster.store import digest_of
from inlay.nas.engines.timing import Workload
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.search import Search
from inlay.nas.loop.together import Question, Records, answer_of
from inlay.nas.pieces.measuring import describe_device
from inlay.nas.pieces.stage import Stage

DEVICE = Stage("device", 2, describe_device)


def workload_of(scenario: Scenario) -> Workload:
    """The scenario as the timer needs it."""
    return Workload(scenario.batch_size, scenario.prefill, scenario.generate, scenario.threads)


def conditions_of(search: Search, scenario: Scenario, version: int) -> str:
    """A digest of all that a model's measured times depend on beside its shape."""
    return digest_of(
        {
            **search.identity,
            "version": version,
            "workload": asdict(workload_of(scenario)),
            "clock": clock_of(search, scenario),
            "engine": search.job.hardware.engine,
            "target": {key: value for key, value in asdict(search.target).items() if key != "python"},
            "environment": environment(search, scenario),
        }
    )


def clock_of(search: Search, scenario: Scenario) -> str:
    """`thread` or `wall`: what the times of a scenario are read from."""
    return workload_of(scenario).clock(search.target.device)


def environment(search: Search, scenario: Scenario) -> dict[str, str]:
    """Device and versions where the times of a scenario are taken, asked of a worker: the driver may have no GPU."""
    clock = clock_of(search, scenario)
    if clock not in search.environments:
        record = search.ask(search.piece(DEVICE, clock, search.engine_arguments, {}), exclusive=clock == "wall")
        search.environments[clock] = dict(record.values["environment"])
    return search.environments[clock]


def run_timed(search: Search, pieces: Sequence[tuple[Scenario, Piece]], what: str) -> list[Record]:
    """Records of pieces that take times, in the order given; `what` is what people are told of them.

    Nothing else may run beside one that reads the wall clock; a thread's own clock stands still while others run.
    """
    return answer_of(search, timed_question(search, pieces), what, "scenarios")


def timed_question(search: Search, pieces: Sequence[tuple[Scenario, Piece]]) -> Question[list[Record]]:
    """What `run_timed` asks."""
    by_clock: dict[str, list[Piece]] = {"thread": [], "wall": []}
    for scenario, piece in pieces:
        by_clock[clock_of(search, scenario)].append(piece)

    def read(records: Records) -> list[Record]:
        return [records[piece.key] for _, piece in pieces]

    return Question(by_clock["thread"], read, by_clock["wall"])
