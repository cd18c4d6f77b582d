"""The learning rate that suits a model: the first steps of its training at some rates, judged on held-out text.

A rate that is right for one child destroys another, whose start is already close to its parent: AdamW's first steps
move every weight by the whole rate, whatever the gradient. The steps are those of the training itself, so that the last
rate that was tried can go on from where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inlay.distill.settings import GlobalSettings

RATES = 5
APART = math.sqrt(10.0)
MOST_STEPS = 32
FEWEST_STEPS = 2
SHORT_SIGHT = 0.15
"""A higher rate may be behind by this share of the KL: it wins later, when the schedule falls."""


@dataclass(frozen=True)
class Trial:
    """What came of the first steps at one rate."""

    learning_rate: float
    """The peak of the training's schedule."""
    kl_nats: float | None
    """On the held-out text after them; None where it, or a loss before, was not finite."""


@dataclass(frozen=True)
class Plan:
    """The trials of a training."""

    rates: tuple[float, ...]
    """Highest first, half a decade apart; none where the rate is pinned or there is no room."""
    steps: int
    """Of each: those before the training is judged first, or fewer."""


def plan_trials(settings: GlobalSettings) -> Plan:
    """The trials that a training may have; none where its rate is pinned or it has too few steps."""
    steps = min(MOST_STEPS, settings.judged_every)
    if settings.rate == "pinned" or steps < FEWEST_STEPS:
        return Plan((), 0)
    return Plan(tuple(settings.learning_rate / APART**number for number in range(RATES)), steps)


def try_rates(rates: Sequence[float], kl_after: Callable[[float], float | None]) -> list[Trial]:
    """Tries the second highest, the highest, and as long as the one before is the worse the next lower ones.

    A highest rate that is right, the usual one, thus comes last, and its steps need not be done again.

    Args:
        rates: highest first, at least two.
        kl_after: trains from the start at a rate, and judges; None where something was not finite.
    """
    trials = [Trial(rate, kl_after(rate)) for rate in (rates[1], rates[0])]
    for rate in rates[2:]:
        lowest = min(trials, key=lambda trial: trial.learning_rate)
        if best_rate(trials) > lowest.learning_rate or (len(trials) > 2 and _kl(trials[-1]) > _kl(trials[-2])):
            break
        trials.append(Trial(rate, kl_after(rate)))
    return trials


def best_rate(trials: Sequence[Trial]) -> float:
    """The highest rate that is not behind by more than `SHORT_SIGHT`; if all diverged, the lowest."""
    least = min(map(_kl, trials))
    if math.isinf(least):
        return min(trial.learning_rate for trial in trials)
    return max(trial.learning_rate for trial in trials if _kl(trial) <= (1.0 + SHORT_SIGHT) * least)


def _kl(trial: Trial) -> float:
    return math.inf if trial.kl_nats is None else trial.kl_nats
