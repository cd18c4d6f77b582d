"""The time left of a search: the plan's estimates, corrected by what is seen, never wild."""

from __future__ import annotations

import itertools

import pytest

from inlay.cluster.events import PieceEvent
from inlay.nas.report.time_left import MOST, SearchTime

STAGES = ("distill", "recover")
ESTIMATES = {"distill": 40.0, "recover": 60.0}


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def event(kind: str, done: int, total: int = 8, fraction: float = 0.0, left: float | None = None) -> PieceEvent:
    return PieceEvent(kind, f"piece {done}", "distill", done, total, left, fraction)  # type: ignore[arg-type]


def run_stage(time: SearchTime, clock: Clock, name: str, seconds: float, pieces: int = 8) -> list[float]:
    """A stage of one batch, its pieces at even times; the seconds left after each."""
    left = []
    time.stage_started(name)
    time.part(1.0, 1)
    time.piece_event(event("kept", 0, pieces))
    time.piece_event(event("started", 0, pieces))
    for done in range(1, pieces + 1):
        clock.now += seconds / pieces
        time.piece_event(event("finished", done, pieces))
        told = time.standing().seconds_left
        assert told is not None
        left.append(told)
    time.stage_finished()
    return left


def test_right_estimates_count_down() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    left = run_stage(time, clock, "distill", 40.0)
    assert left == pytest.approx([95.0 - 5 * done for done in range(8)])
    assert time.standing().fraction == pytest.approx(0.4)
    assert run_stage(time, clock, "recover", 60.0)[-1] == pytest.approx(0.0)


def test_an_estimate_is_corrected_as_it_runs() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    # Everything takes three times as long as was thought: 120 s, then 180 s.
    left = run_stage(time, clock, "distill", 120.0)
    assert left[3] > 2 * (20 + 60)
    # 40 s were seen to be 120 s, and 10 s of faith stay: 2.6 times the 60 s that are left.
    assert left[-1] == pytest.approx(60 * (120 + 10) / (40 + 10))
    after = run_stage(time, clock, "recover", 180.0)
    assert after[3] == pytest.approx(90.0, rel=0.1)
    assert time.standing().seconds_left == pytest.approx(0.0)


def test_one_short_stage_decides_little() -> None:
    clock = Clock()
    time = SearchTime(("score", "recover"), {"score": 1.0, "recover": 99.0}, clock)
    run_stage(time, clock, "score", 10.0)
    assert time.standing().seconds_left == pytest.approx(99 * (10 + 10) / (1 + 10))


def test_a_correction_is_never_wild() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    run_stage(time, clock, "distill", 4000.0)
    assert time.standing().seconds_left == pytest.approx(MOST * 60)
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    time.stage_started("distill")
    time.piece_event(event("kept", 0))
    time.piece_event(event("started", 0))
    clock.now = 10
    # The first sign of a slow start, and a fan-out that thinks of hours.
    time.piece_event(event("progress", 0, fraction=0.001, left=80_000.0))
    assert 80 < (time.standing().seconds_left or 0) < 140


def test_time_passes_while_nothing_is_told() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    time.stage_started("distill")
    clock.now = 10
    assert time.standing().seconds_left == pytest.approx(90.0)
    clock.now = 400
    assert time.standing().seconds_left == pytest.approx(64.0)  # a tenth of the stage is thought to be left


def test_waiting_for_workers_is_not_the_pace_of_their_work() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    time.stage_started("distill")
    time.part(1.0, 1)
    time.piece_event(event("kept", 0))
    clock.now = 30
    time.piece_event(event("waiting", 0))
    clock.now = 60
    time.piece_event(event("started", 0))
    clock.now = 70
    time.piece_event(event("finished", 2))
    time.piece_event(event("waiting", 2))
    clock.now = 110
    time.piece_event(event("started", 2))
    clock.now = 120
    time.piece_event(event("finished", 4))  # half of the stage in 20 s of work, as was thought
    assert time.standing().seconds_left == pytest.approx(80.0, rel=0.2)


def test_what_earlier_runs_left_behind_teaches_nothing() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    time.stage_started("distill")
    time.part(1.0, 1)
    time.piece_event(event("kept", 8))
    clock.now = 0.1
    time.stage_finished()
    standing = time.standing()
    assert standing.seconds_left == pytest.approx(60.0)
    assert standing.fraction == pytest.approx(0.4, abs=0.01)
    time.stage_started("recover")
    time.part(1.0, 1)
    time.piece_event(event("kept", 4))
    time.piece_event(event("started", 4))
    for done in range(5, 9):  # the other half takes twice as long as was thought
        clock.now += 15
        time.piece_event(event("finished", done))
        if done == 6:
            assert time.standing().seconds_left == pytest.approx(30.0, rel=0.15)


def test_a_stage_of_many_batches_goes_on_part_by_part() -> None:
    time = SearchTime(("assemble",), {"assemble": 100.0}, Clock())
    time.stage_started("assemble")
    seen = []
    time.part(0.4, 4)
    for _ in range(2):  # of four rounds at most, two were needed
        time.piece_event(event("kept", 0, 2))
        time.piece_event(event("finished", 1, 2))
        time.piece_event(event("finished", 2, 2))
        seen.append(time.stage_fraction)
    time.part(0.7)
    for _ in range(3):  # nobody knows how many there are
        time.piece_event(event("kept", 0, 1))
        time.piece_event(event("finished", 1, 1))
        seen.append(time.stage_fraction)
    time.part(0.85, 1)
    time.piece_event(event("kept", 0, 1))
    time.piece_event(event("progress", 0, 1, fraction=0.5))
    seen.append(time.stage_fraction)
    assert seen == pytest.approx([0.1, 0.2, 0.55, 0.625, 0.6625, 0.775])


def test_the_bar_never_goes_back_nor_stands_still() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock)
    fractions = []
    time.stage_started("distill")
    time.part(1.0, 1)
    time.piece_event(event("kept", 0))
    time.piece_event(event("started", 0))
    for done in range(1, 9):
        clock.now += 1 if done < 5 else 60
        time.piece_event(event("finished", done))
        fractions.append(time.standing().fraction)
    assert all(one < other for one, other in itertools.pairwise(fractions))
    assert fractions[-1] < 1


def test_of_another_device_only_proportions_are_estimated() -> None:
    clock = Clock()
    time = SearchTime(STAGES, ESTIMATES, clock, of_this_device=False)
    time.stage_started("distill")
    assert time.standing().seconds_left is None
    time.part(1.0, 1)
    time.piece_event(event("kept", 0))
    time.piece_event(event("started", 0))
    clock.now = 0.02  # a thousand times as fast
    time.piece_event(event("finished", 4))
    assert time.standing().seconds_left == pytest.approx(0.08)
    assert time.standing().fraction == pytest.approx(0.2)


def test_where_nothing_is_estimated_stages_are_counted() -> None:
    time = SearchTime(STAGES, {}, Clock())
    time.stage_started("distill")
    time.stage_finished()
    time.stage_started("recover")
    standing = time.standing()
    assert (standing.seconds_left, standing.stage, standing.num_stages, standing.estimated) == (None, 2, 2, False)
    assert standing.fraction == 0.5
