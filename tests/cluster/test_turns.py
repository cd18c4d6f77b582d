"""The order in which jobs begin: by priority, then as they came, and one at a time on a workspace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inlay.cluster.job_info import JobInfo, ahead_of, holder_of, may_begin


def info(
    name: str, priority: str, submitted: float, state: str = "PENDING", place: str = "", *, at_gate: bool = False
) -> JobInfo:
    details = {"priority": priority, "workspace": place or f"/searches/{name}"}
    return JobInfo(name, state, "", None, submitted, None, {}, details, {}, at_gate=at_gate)


RUNNING = info("runs", "low", 1, "RUNNING")
LATE_HIGH = info("late-high", "high", 9, at_gate=True)
HIGH = info("high", "high", 5)
FIRST = info("first", "normal", 2, at_gate=True)
SECOND = info("second", "normal", 3, at_gate=True)
LOW = info("low", "low", 2, at_gate=True)
ALL = [RUNNING, LOW, SECOND, FIRST, HIGH, LATE_HIGH]


def test_who_waits_is_in_the_order_of_priority_and_then_of_submission() -> None:
    order = ["high", "late-high", "first", "second", "low"]
    assert [job.job_id for job in ahead_of(LOW, ALL)] == order[:-1]
    assert [len(ahead_of(job, ALL)) for job in (HIGH, LATE_HIGH, FIRST, SECOND, LOW)] == [0, 1, 2, 3, 4]
    other = replace(info("other", "", 0), details={})
    assert ahead_of(LOW, [*ALL, other]) == ahead_of(LOW, ALL), "what inlay did not submit waits for no turn"


@pytest.mark.parametrize("slots", [0, 2, 3])
def test_the_first_begins_where_there_is_a_slot_and_no_other(slots: int) -> None:
    jobs = [RUNNING, LOW, SECOND, FIRST]
    assert [may_begin(job, jobs, slots) for job in (FIRST, SECOND, LOW)] == [True, False, False]
    assert not may_begin(FIRST, jobs, 1), "as many run as may"


def test_one_of_higher_priority_is_waited_for_until_ray_has_started_it() -> None:
    assert not may_begin(FIRST, ALL, 2)
    assert may_begin(replace(HIGH, at_gate=True), ALL, 2)


def test_one_of_the_same_priority_that_ray_keeps_back_is_not_waited_for() -> None:
    """Ray starts no more of one priority than have slots: it may wait for the end of this very job."""
    assert may_begin(SECOND, [SECOND, replace(FIRST, at_gate=False)], 1)


def test_two_on_one_workspace_run_one_after_the_other_and_let_others_pass() -> None:
    same = info("same", "high", 2, place="/searches/./runs/", at_gate=True)
    jobs = [RUNNING, same, FIRST]
    assert holder_of(same, jobs) is RUNNING
    assert not may_begin(same, jobs, 3)
    assert may_begin(FIRST, jobs, 3)
    assert may_begin(same, [same, FIRST], 3)
    assert holder_of(RUNNING, jobs) is None
    url = info("url", "normal", 1, "RUNNING", "s3://bucket/w/")
    assert holder_of(info("also", "normal", 2, place="s3://bucket/w"), [url]) is url
