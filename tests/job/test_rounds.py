"""What each of several rounds gets of a job's tokens and budget, and what cannot be searched in rounds."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from inlay.nas.job import Job, JobError
from inlay.nas.job.budget import parse_budget
from inlay.nas.job.rounds import round_values, tightened

PARENT = {
    "chat": {"runtime": 4_000_000, "memory": 1000, "parameters": 10_000, "throughput": 10.0, "decode": 100},
    "long": {"runtime": 9_000_000, "memory": 4000, "parameters": 10_000, "throughput": 10.0, "decode": 100},
}
ONE = {"chat": PARENT["chat"]}


@pytest.mark.parametrize(
    ("budget", "parent", "half_way"),
    [
        ({"runtime": "0.36x", "throughput": "4x"}, ONE, {"runtime": "0.6x", "throughput": "2x"}),
        ({"chat": {"kv": "0.25x"}}, PARENT, {"chat": {"kv": "0.5x"}}),
        # Absolute limits lie between the parent's own value and what they are in the end, scenario by scenario.
        ({"runtime": "1ms"}, ONE, {"runtime": "2000000ns"}),
        ({"runtime": "1ms"}, PARENT, {"chat": {"runtime": "2000000ns"}, "long": {"runtime": "3000000ns"}}),
        ({"chat": {"memory": "250B"}}, PARENT, {"chat": {"memory": "500B"}}),
        ({"parameters": "2500", "throughput": 40}, PARENT, {"parameters": "5000", "chat": {"throughput": "20"},
                                                           "long": {"throughput": "20"}}),
        # What limits nothing is left as it is, and so is what nothing is known of.
        ({"memory": "2kB"}, ONE, {"memory": "2000B"}),
        ({"throughput": 5}, ONE, {"throughput": "5"}),
        ({"runtime": "1ms"}, {"chat": {"memory": 1000}}, {"runtime": "1ms"}),
    ],
)  # fmt: skip
def test_half_way_to_a_budget(budget: Any, parent: Any, half_way: Any) -> None:
    read = parse_budget(budget)
    found = tightened(read, Fraction(1, 2), parent)
    assert found == half_way
    parse_budget(found)
    assert tightened(read, Fraction(1), parent) == read.to_dict()


def test_limits_tighten_by_the_same_factor(values: dict[str, Any]) -> None:
    job = Job.from_dict({**values, "rounds": 3, "budget": {"runtime": "0.5x"}})
    ratios = [
        next(iter(Job.from_dict(round_values(job, number, {})).budget)).ratio or Fraction(0) for number in (1, 2, 3)
    ]
    assert ratios[2] == Fraction(1, 2)
    assert [float(ratio) for ratio in ratios] == pytest.approx([0.5 ** (1 / 3), 0.5 ** (2 / 3), 0.5], rel=1e-5)


def test_rounds_share_the_tokens_and_draw_text_of_their_own(values: dict[str, Any]) -> None:
    job = Job.from_dict({**values, "rounds": 4, "seed": 7, "budget": {"runtime": "0.5x"}})
    rounds = [Job.from_dict(round_values(job, number, {})) for number in range(1, 5)]
    assert sum(each.distill.tokens for each in rounds) == job.distill.tokens
    assert sum(each.recover.tokens for each in rounds) == job.recover.tokens
    assert [each.seed for each in rounds] == [7, 8, 9, 10]
    assert {each.rounds for each in rounds} == {1}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rounds": 0}, "rounds: 0 is out of range; it must be at least 1"),
        ({"rounds": 17}, "rounds: 17 is out of range; it must be at most 16"),
        (
            {"recover": {"tokens": 0}},
            "rounds: 3 rounds go on from recovered children, and recover.tokens is 0; give it tokens, or write 1",
        ),
        (
            {"recover": {"tokens": 700}},
            "rounds: 3 leave 233 of recover.tokens to each, less than one sequence of 256 tokens; raise "
            "recover.tokens, or write fewer rounds",
        ),
        (
            {"distill": {"tokens": 300}},
            "rounds: 3 leave 100 of distill.tokens to each, less than one sequence of 256 tokens; raise "
            "distill.tokens, or write fewer rounds",
        ),
        (
            {"space": {"ffn": ["no_op"], "formats": ["q8_0"]}},
            "space.formats: are chosen anew by every search, and what rounds hand on is not stored in them; leave them "
            "out, and search for formats from the last child",
        ),
        (
            {"hardware": {"costs": "costs.csv", "scenarios": [{"name": "chat"}]}},
            "hardware.costs: has no times of what children of children are made of; leave it out, or write rounds: 1",
        ),
        (
            {"original": "./parents/stories3M"},
            "original: is what the rounds set themselves; leave it out, or write rounds: 1",
        ),
    ],
)
def test_what_cannot_be_searched_in_rounds(values: dict[str, Any], changes: Any, sentence: str) -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict({**values, "rounds": 3, **changes})
    assert sentence in str(caught.value)


def test_a_cost_table_has_no_original(values: dict[str, Any]) -> None:
    hardware = {**values["hardware"], "costs": "costs.csv"}
    with pytest.raises(JobError, match=r"hardware.costs: has no times of the original, which budgets and figures are"):
        Job.from_dict({**values, "original": "./parents/stories3M", "hardware": hardware})


def test_one_hub_id_has_one_revision(values: dict[str, Any]) -> None:
    revision = "0" * 40
    Job.from_dict({**values, "original": "owner/name", "revision": revision})
    with pytest.raises(JobError, match="original: 'owner/other' is a hub id, and so is the parent; name a folder for"):
        Job.from_dict({**values, "parent": "owner/name", "original": "owner/other", "revision": revision})
    with pytest.raises(JobError, match="revision: is missing; the hub id owner/other needs its commit"):
        Job.from_dict({**values, "original": "owner/other"})


def test_a_tail_is_shared_and_the_last_child_alone_is_registered(values: dict[str, Any]) -> None:
    recover = {"tokens": 400_000, "tail": {"tokens": 100_000, "sequence_length": 4096}}
    tracking = {"register": "stories", "alias": "champion"}
    job = Job.from_dict({**values, "rounds": 2, "recover": recover, "tracking": tracking})
    first, last = (Job.from_dict(round_values(job, number, {}), folder=job.folder) for number in (1, 2))
    for one in (first, last):
        assert (one.recover.tokens, one.recover.tail.tokens) == (200_000, 50_000)
    assert (first.tracking.register, first.tracking.alias) == (None, None)
    assert (last.tracking.register, last.tracking.alias) == ("stories", "champion")
