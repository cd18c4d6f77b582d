"""How long the sequences are that judge."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.nas.errors import UserError
from inlay.nas.job import Job
from inlay.nas.job.judged import judged_length


def scenario(name: str, prefill: int, generate: int) -> dict[str, Any]:
    return {"name": name, "batch_size": 1, "prefill": prefill, "generate": generate}


def test_as_long_as_the_longest_scenario_serves(values: dict[str, Any]) -> None:
    values["budget"] = {"runtime": "0.6x"}
    values["hardware"]["scenarios"] = [scenario("chat", 128, 128), scenario("long", 3000, 1000)]
    assert judged_length(Job.from_dict(values)) == 4000


def test_at_least_as_long_as_what_is_trained_on(values: dict[str, Any]) -> None:
    values["hardware"]["scenarios"] = [scenario("chat", 32, 16)]
    assert judged_length(Job.from_dict(values)) == 256


def test_as_the_job_says(values: dict[str, Any]) -> None:
    values["data"]["validate"]["sequence_length"] = 512
    job = Job.from_dict(values)
    assert judged_length(job) == 512
    assert judged_length(Job.from_dict(job.to_dict())) == 512


def test_never_shorter_than_what_is_trained_on(values: dict[str, Any]) -> None:
    values["data"]["validate"]["sequence_length"] = 128
    with pytest.raises(UserError) as caught:
        Job.from_dict(values)
    told = "128 is less than data.distill.sequence_length; write at least 256, or leave it out"
    assert str(caught.value) == f"job: data.validate.sequence_length: {told}"


def test_too_few_tokens_for_a_long_scenario(values: dict[str, Any]) -> None:
    values["hardware"]["scenarios"] = [scenario("chat", 40_000, 100)]
    with pytest.raises(UserError) as caught:
        Job.from_dict(values)
    told = "64000 is less than 2 sequences of 40100 tokens (the longest scenario's); raise it, or set"
    assert str(caught.value) == f"job: data.validate.tokens: {told} data.validate.sequence_length"
    values["data"]["validate"]["sequence_length"] = 1024
    assert judged_length(Job.from_dict(values)) == 1024
