"""The learning rate that suits a model: a few steps at each of some rates, from one start, judged on held-out text.

A rate that is right for one child destroys another, whose start is already close to its parent: AdamW's first steps
move every weight by the whole rate, whatever the gradient. Few steps are enough to see that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inlay.distill.objective import Parameters, copied, gradients, held_out_kl, put_back
from inlay.distill.optimize import adamw, set_learning_rate, warmup_cosine
from inlay.distill.parallel import Ranks
from inlay.distill.settings import GlobalSettings

OnTrial = Callable[[int, int], None]
SHARE = 4
"""The trials together take at most one part in so many of the training's steps."""
RATES = 5
MOST_STEPS = 16
FEWEST_STEPS = 2
TIE = 0.01
"""A lower rate must be better by this share of the KL: trials tell less than that."""


@dataclass(frozen=True)
class Trial:
    """What came of a few steps at one rate."""

    learning_rate: float
    """The peak of their schedule."""
    kl_nats: float | None
    """On the held-out text after them; None where it, or a loss before, was not finite."""


@dataclass(frozen=True)
class Plan:
    """The trials of a training."""

    rates: tuple[float, ...]
    """Highest first, half a decade apart, or a decade where there is room for few; none where there is not for two."""
    steps: int
    """Of each."""


def plan_trials(settings: GlobalSettings) -> Plan:
    """The trials that a training has room for; none where its rate is pinned."""
    room = settings.steps // SHARE
    steps = min(MOST_STEPS, max(FEWEST_STEPS, room // RATES))
    count = min(RATES, room // steps)
    if settings.rate == "pinned" or count < 2:
        return Plan((), 0)
    apart = math.sqrt(10.0) if count == RATES else 10.0
    return Plan(tuple(settings.learning_rate / apart**number for number in range(count)), steps)


def try_rates(
    parent: Any,
    child: Any,
    parameters: Parameters,
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor],
    settings: GlobalSettings,
    ranks: Ranks,
    on_trial: OnTrial | None = None,
) -> list[Trial]:
    """Trains on `batches` at each rate of the plan, highest first, until one is worse than the best before it.

    The child is as it was afterwards. `on_trial(done, all)` is called after every step.
    """
    plan = plan_trials(settings)
    start = copied(parameters)
    trials: list[Trial] = []
    for number, rate in enumerate(plan.rates):
        optimizer = adamw(parameters.values(), rate, settings.betas, settings.weight_decay)
        finite = True
        for step, ids_BS in enumerate(batches[: plan.steps]):
            finite = finite and gradients(parent, child, parameters, ids_BS, settings, ranks) is not None
            if finite:
                set_learning_rate(optimizer, rate * warmup_cosine(step, plan.steps, settings.warmup, settings.floor))
                optimizer.step()
            if on_trial is not None:
                on_trial(number * plan.steps + step + 1, len(plan.rates) * plan.steps)
        trials.append(Trial(rate, held_out_kl(parent, child, held_out, settings, ranks) if finite else None))
        put_back(parameters, start)
        if _kl(trials[-1]) > (1.0 + TIE) * min(map(_kl, trials)):
            break
    return trials


def best_rate(trials: Sequence[Trial]) -> float:
    """The rate with the least KL, of those that tie with it the highest; if all diverged, the lowest."""
    least = min(map(_kl, trials))
    if math.isinf(least):
        return trials[-1].learning_rate
    return next(trial.learning_rate for trial in trials if _kl(trial) <= (1.0 + TIE) * least)


def _kl(trial: Trial) -> float:
    return math.inf if trial.kl_nats is None else trial.kl_nats
