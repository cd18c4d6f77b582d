"""The range test: what it tries, what it takes, and that it leaves no trace."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.distill.globally import distill_globally
from inlay.distill.rates import Trial, best_rate, next_rate, plan_trials
from inlay.distill.settings import GlobalSettings


def small() -> Any:
    """The models and batches of test_globally.py."""
    spec = importlib.util.spec_from_file_location("small_models", Path(__file__).with_name("test_globally.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_models"] = module
    spec.loader.exec_module(module)
    return module


SMALL = small()
SETTINGS = GlobalSettings(steps=60, learning_rate=1.0, rate="found")


@pytest.mark.parametrize(
    ("steps", "rates", "of_each"), [(6, 0, 0), (7, 6, 2), (30, 6, 5), (160, 6, 27), (10_000, 6, 32)]
)
def test_trials_end_where_the_training_is_judged_first_or_before(steps: int, rates: int, of_each: int) -> None:
    plan = plan_trials(replace(SETTINGS, steps=steps))
    assert (len(plan.rates), plan.steps) == (rates, of_each)
    apart = [math.log10(one / other) for one, other in pairwise(plan.rates)]
    assert apart == pytest.approx([0.5] * len(apart))
    if rates:
        assert plan.rates[0] == 1.0


def test_a_pinned_rate_is_not_tried() -> None:
    assert plan_trials(replace(SETTINGS, rate="pinned")).rates == ()
    parent, child = SMALL.models()
    settings = replace(SETTINGS, rate="pinned", steps=20, learning_rate=3e-3)
    result = distill_globally(parent, child, SMALL.batches(20), SMALL.held_out(), settings)
    assert (result.trials, result.learning_rate) == ([], 3e-3)


@pytest.mark.parametrize(
    ("kls", "rate"),
    [
        ([3.0, 2.0, 1.0, 0.5], 1e-3),
        ([1.14, 1.05, 1.0], 1.0),
        ([None, 0.7, 0.65, 0.8], 0.1),
        ([None, None, None], 1e-2),
        ([None, 0.0], 0.1),
    ],
)
def test_the_highest_rate_is_taken_that_is_not_far_behind(kls: list[float | None], rate: float) -> None:
    assert best_rate([Trial(10.0**-place, kl) for place, kl in enumerate(kls)]) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("kls", "order"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9], [1, 0]),
        ([0.57, 0.5, 0.4, 0.4, 0.4], [1, 0]),
        ([2.0, 0.5, 0.6, 0.4, 0.4], [1, 0, 2]),
        ([2.0, 0.5, 0.48, 0.4, 0.4], [1, 0, 2]),
        ([None, None, 2.0, 1.0, 1.5], [1, 0, 2, 3, 4]),
        ([None] * 5, [1, 0, 2, 3, 4]),
    ],
)
def test_a_right_highest_rate_is_tried_last_and_a_wrong_one_makes_room(
    kls: list[float | None], order: list[int]
) -> None:
    rates = [10.0**-place for place in range(5)]
    after = dict(zip(rates, kls, strict=True))
    trials: list[Trial] = []
    while (rate := next_rate(rates, trials)) is not None:
        trials.append(Trial(rate, after[rate]))
    assert [rates.index(trial.learning_rate) for trial in trials] == order


@pytest.mark.parametrize("rate", [1.0, 1e-2])
def test_every_trial_is_told_and_then_every_step_once(rate: float) -> None:
    parent, child = SMALL.models()
    tried: list[tuple[int, int]] = []
    steps: list[int] = []
    result = distill_globally(
        parent, child, SMALL.batches(60), SMALL.held_out(), replace(SETTINGS, learning_rate=rate),
        on_step=lambda step, of, losses: steps.append(step), on_trial=lambda *at: tried.append(at),
    )  # fmt: skip
    assert tried == [(step, 60) for step in range(1, 10 * len(result.trials) + 1)]
    assert steps == list(range(1, 61))
    assert len(result.trials) >= 2
    start, chosen = result.start_kl_nats, {t.learning_rate: t.error for t in result.trials}[result.learning_rate]
    assert start is not None
    assert chosen is not None
    assert chosen < start


@pytest.mark.parametrize("highest", [1.0, 1e-2])
def test_the_rate_found_is_trained_at_from_the_same_start_and_batches(highest: float) -> None:
    results = []
    for settings in (replace(SETTINGS, learning_rate=highest), None):
        parent, child = SMALL.models()
        settings = settings or replace(SETTINGS, rate="pinned", learning_rate=results[0][0].learning_rate)
        result = distill_globally(parent, child, SMALL.batches(60), SMALL.held_out(), settings)
        results.append((result, SMALL.weights(child)))
    (found, found_weights), (pinned, pinned_weights) = results
    assert found.learning_rate == best_rate(found.trials)
    assert (found.learning_rate < highest) == (highest == 1.0)
    assert found.improved
    assert found.curve == pinned.curve
    assert found.held_out == pinned.held_out
    assert SMALL.same(found_weights, pinned_weights)


def test_a_rate_at_which_nothing_is_finite_is_lowered() -> None:
    parent, child = SMALL.models()
    settings = replace(SETTINGS, learning_rate=1e30)
    result = distill_globally(parent, child, SMALL.batches(60), SMALL.held_out(), settings)
    assert all(trial.error is None or trial.error > 1 for trial in result.trials)
    assert result.status == "trained"
    assert not result.improved
    assert all(tensor.isfinite().all() for tensor in child.state_dict().values())
    assert torch.isfinite(torch.tensor(result.best_kl_nats))
