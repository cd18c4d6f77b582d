"""The learning rate that suits a model or a variant: its first steps at some rates, judged on other text.

A rate that is right for one child destroys another, whose start is already close to its parent: AdamW's first steps
move every weight by the whole rate, whatever the gradient. The steps are those of the training itself, so that the last
rate that was tried can go on from where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inlay.distill.settings import GlobalSettings, LocalSettings

RATES = 6
"""That a whole model tries at most."""
LOCAL_RATES = 3
APART = math.sqrt(10.0)
MOST_STEPS = 32
LOCAL_SHARE = 12
"""A variant tries a rate for this part of its steps, where there are so many: each in its layer tries its own."""
FEWEST_STEPS = 2
SHORT_SIGHT = 0.15
"""A higher rate may be behind by this share of the error: it wins later, when the schedule falls."""


@dataclass(frozen=True)
class Trial:
    """What came of the first steps at one rate."""

    learning_rate: float
    """The peak of the training's schedule."""
    error: float | None
    """On other text after them, a model's KL in nats or a variant's loss; None if not finite, then or before."""


@dataclass(frozen=True)
class Plan:
    """The trials of a training."""

    rates: tuple[float, ...]
    """Highest first, half a decade apart; none where the rate is pinned or there is no room."""
    steps: int
    """Of each."""


def plan_trials(settings: GlobalSettings) -> Plan:
    """The trials that a training may have; none where its rate is pinned or it has too few steps."""
    steps = min(MOST_STEPS, settings.judged_every)
    if settings.rate == "pinned" or steps < FEWEST_STEPS:
        return Plan((), 0)
    return Plan(_rates(settings.learning_rate, RATES), steps)


def plan_local_trials(settings: LocalSettings) -> Plan:
    """The trials that a variant may have; none where its rate is pinned or it has too few steps."""
    if settings.rate == "pinned" or settings.steps < LOCAL_SHARE:
        return Plan((), 0)
    steps = min(MOST_STEPS, max(FEWEST_STEPS, settings.steps // LOCAL_SHARE))
    return Plan(_rates(settings.learning_rate, LOCAL_RATES), steps)


def _rates(highest: float, count: int) -> tuple[float, ...]:
    return tuple(highest / APART**number for number in range(count))


def next_rate(rates: Sequence[float], trials: Sequence[Trial]) -> float | None:
    """The rate to try after these trials: the second highest, the highest, then lower ones while the last is too high.

    A highest rate that is right, the usual one, thus comes last, and its steps need not be done again.

    Args:
        rates: highest first, at least two.
        trials: as they were made.
    """
    if len(trials) < 2:
        return rates[1 - len(trials)]
    lowest = min(trials, key=lambda trial: trial.learning_rate)
    if best_rate(trials) > lowest.learning_rate or (len(trials) > 2 and _error(trials[-1]) > _error(trials[-2])):
        return None
    return rates[len(trials)] if len(trials) < len(rates) else None


def best_rate(trials: Sequence[Trial]) -> float:
    """The highest rate that is not behind by more than `SHORT_SIGHT`; if all diverged, the lowest."""
    least = min(map(_error, trials))
    if math.isinf(least):
        return min(trial.learning_rate for trial in trials)
    return max(trial.learning_rate for trial in trials if _error(trial) <= (1.0 + SHORT_SIGHT) * least)


def _error(trial: Trial) -> float:
    return math.inf if trial.error is None else trial.error
