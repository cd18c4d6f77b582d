"""The range test of local distillation: each variant has its own rate, and is else as if it had been given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from inlay.distill.local import BranchResult, train_layer
from inlay.distill.rates import best_rate, plan_local_trials
from inlay.distill.settings import LocalSettings

SETTINGS = LocalSettings(steps=60, learning_rate=3e-2, rate="found")
LABELS = ["attention:window=16", "attention:kv_heads=1", "attention:linear", "ffn:width=24", "ffn:linear"]


def branches(here: Any) -> list[Any]:
    """Variants with random weights, and a window that starts as its parent, which a high rate would destroy."""
    near = here.branch(LABELS[0], start=here.parent)
    return [near, *(here.branch(label) for label in LABELS[1:])]


def train(here: Any, chosen: list[Any], settings: LocalSettings = SETTINGS, **options: Any) -> list[BranchResult]:
    count = settings.steps + settings.held_out
    return train_layer(here.parent, chosen, here.batches(count), settings, **options)


@pytest.mark.parametrize(
    ("steps", "rates", "of_each"), [(11, 0, 0), (12, 3, 2), (35, 3, 2), (60, 3, 5), (244, 3, 20), (10_000, 3, 32)]
)
def test_trials_take_a_small_part_of_the_steps(steps: int, rates: int, of_each: int) -> None:
    plan = plan_local_trials(replace(SETTINGS, steps=steps))
    assert (len(plan.rates), plan.steps) == (rates, of_each)
    assert plan_local_trials(replace(SETTINGS, steps=steps, rate="pinned")).rates == ()
    if rates:
        assert plan.rates == pytest.approx([3e-2, 3e-2 / math.sqrt(10), 3e-3])


@pytest.mark.parametrize("through", ["subblock", "layer"])
def test_each_variant_is_trained_as_if_its_rate_had_been_given(place: Any, through: Any) -> None:
    here = place("llama")
    settings = replace(SETTINGS, through=through)
    found = train(here, branches(here), settings)
    assert len({result.learning_rate for result in found}) > 1
    for place_of, result in enumerate(found):
        assert result.learning_rate == best_rate(result.trials)
        pinned = replace(settings, rate="pinned", learning_rate=result.learning_rate)
        (given,) = train(here, [branches(here)[place_of]], pinned)
        assert given.trials == []
        assert (given.curve, given.start_loss, given.final_loss) == (
            result.curve, result.start_loss, result.final_loss,
        )  # fmt: skip
        assert all(torch.equal(tensor, result.state[name]) for name, tensor in given.state.items())


def test_what_is_near_its_parent_gets_a_lower_rate_than_what_is_far(place: Any) -> None:
    here = place("llama")
    near, far, *_ = train(here, branches(here))
    assert near.start_loss < 0.1 * far.start_loss
    assert near.learning_rate < far.learning_rate


def test_a_variants_rate_does_not_depend_on_its_company(place: Any) -> None:
    here = place("llama")
    together = train(here, branches(here))
    for number, result in enumerate(together):
        (alone,) = train(here, [branches(here)[number]])
        assert (alone.trials, alone.curve) == (result.trials, result.curve)


def test_every_trial_is_told_and_then_every_step_once(place: Any) -> None:
    here = place("llama")
    tried: list[tuple[int, int]] = []
    told: list[tuple[int, int, float]] = []
    results = train(
        here, branches(here), on_step=lambda *at: told.append(at), on_trial=lambda *at: tried.append(at)
    )  # fmt: skip
    assert [done for done, _ in tried] == list(range(1, len(tried) + 1))
    assert {of for _, of in tried} == {20}
    assert len(tried) >= 5 * max(len(result.trials) for result in results)
    means = [sum(losses) / len(results) for losses in zip(*(result.curve for result in results), strict=True)]
    assert told == [(step, 60, mean) for step, mean in enumerate(means, start=1)]


def test_a_rate_at_which_nothing_is_finite_is_lowered(place: Any) -> None:
    here = place("llama")
    (result,) = train(here, [here.branch("ffn:width=24")], replace(SETTINGS, learning_rate=3e19))
    assert [trial.error for trial in result.trials] == [None] * 3
    assert result.status == "failed" or result.kept == "start"


def test_a_step_that_is_not_finite_in_a_trial_is_of_no_account_at_a_lower_rate(place: Any) -> None:
    here = place("llama")
    given = list(here.batches(62))
    given[3] = replace(given[3], hidden_BSD=given[3].hidden_BSD * float("inf"))
    (result,) = train_layer(here.parent, [here.branch("ffn:width=24")], given, SETTINGS)
    assert [trial.error for trial in result.trials] == [None] * 3
    assert result.status == "trained"
    assert result.learning_rate == pytest.approx(1e-3)  # the lowest one's third
    assert result.final_loss < result.start_loss


def test_too_few_batches_for_a_trial_are_named(place: Any) -> None:
    here = place("llama")
    with pytest.raises(ValueError, match="4 batches came, but 60 to train on and 2 held out"):
        train_layer(here.parent, branches(here), here.batches(4), SETTINGS)
