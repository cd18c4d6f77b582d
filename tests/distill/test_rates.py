"""The range test: what it tries, what it takes, and that it leaves no trace."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.distill.globally import distill_globally
from inlay.distill.objective import held_out_kl
from inlay.distill.parallel import Ranks
from inlay.distill.rates import SHARE, Trial, best_rate, plan_trials, try_rates
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
    ("steps", "rates", "of_each"),
    [(7, 0, 0), (16, 2, 2), (30, 3, 2), (48, 5, 2), (160, 5, 8), (10_000, 5, 16)],
)
def test_trials_fit_in_a_quarter_of_the_steps(steps: int, rates: int, of_each: int) -> None:
    plan = plan_trials(replace(SETTINGS, steps=steps))
    assert (len(plan.rates), plan.steps) == (rates, of_each)
    assert len(plan.rates) * plan.steps <= steps / SHARE
    assert list(plan.rates) == sorted(plan.rates, reverse=True)
    assert all(one / other <= 10.1 for one, other in zip(plan.rates, plan.rates[1:], strict=False))
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
        ([1.0, 0.995, 0.999], 1.0),
        ([None, 0.7, 0.695, 0.8], 0.1),
        ([None, None, None], 1e-2),
        ([None, 0.0], 0.1),
    ],
)
def test_the_best_rate_is_taken_and_the_higher_of_two_that_tie(kls: list[float | None], rate: float) -> None:
    assert best_rate([Trial(10.0**-place, kl) for place, kl in enumerate(kls)]) == pytest.approx(rate)


def test_a_rate_that_destroys_is_passed_over_and_the_child_is_as_it_was() -> None:
    parent, child = SMALL.models()
    parameters = dict(child.named_parameters())
    before = SMALL.weights(child)
    told: list[tuple[int, int]] = []
    batches, held_out = list(SMALL.batches(3)), SMALL.held_out()
    start = held_out_kl(parent, child, held_out, SETTINGS, Ranks())
    given = (parent, child, parameters, batches, held_out, SETTINGS, Ranks())
    trials = try_rates(*given, on_trial=lambda *at: told.append(at))
    assert SMALL.same(before, SMALL.weights(child))
    assert trials == try_rates(*given)
    assert [trial.learning_rate for trial in trials] == list(plan_trials(SETTINGS).rates[: len(trials)])
    assert told == [(step, 15) for step in range(1, 3 * len(trials) + 1)]
    assert start is not None
    destroyed = trials[0].kl_nats
    assert destroyed is None or destroyed > start
    chosen = {trial.learning_rate: trial.kl_nats for trial in trials}[best_rate(trials)]
    assert chosen is not None
    assert chosen < start


def test_the_rate_found_is_trained_at_from_the_same_start_and_batches() -> None:
    results = []
    for settings in (SETTINGS, None):
        parent, child = SMALL.models()
        settings = settings or replace(SETTINGS, rate="pinned", learning_rate=results[0][0].learning_rate)
        result = distill_globally(parent, child, SMALL.batches(60), SMALL.held_out(), settings)
        results.append((result, SMALL.weights(child)))
    (found, found_weights), (pinned, pinned_weights) = results
    assert found.learning_rate == best_rate(found.trials) < SETTINGS.learning_rate
    assert found.improved
    assert found.curve == pinned.curve
    assert found.held_out == pinned.held_out
    assert SMALL.same(found_weights, pinned_weights)


def test_a_rate_at_which_nothing_is_finite_is_lowered() -> None:
    parent, child = SMALL.models()
    settings = replace(SETTINGS, learning_rate=1e30)
    result = distill_globally(parent, child, SMALL.batches(60), SMALL.held_out(), settings)
    assert all(trial.kl_nats is None or trial.kl_nats > 1 for trial in result.trials)
    assert result.status == "trained"
    assert not result.improved
    assert all(tensor.isfinite().all() for tensor in child.state_dict().values())
    assert torch.isfinite(torch.tensor(result.best_kl_nats))
