"""Local distillation: every variant of one layer trained at once, on what the parent's own layers see.

One parent pass over a batch feeds all variants of both subblocks (Puzzle, arXiv 2411.19146, section 3.2, decoupled
blockwise local distillation). Shapes: B batch, S sequence, D model width.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.distill.branches import Branch, LayerBatch, Targets, layer_behind, layer_targets
from inlay.distill.optimize import adamw, set_learning_rate, tensor_cores, warmup_linear
from inlay.distill.rates import Trial, best_rate, next_rate, plan_local_trials
from inlay.distill.settings import LocalSettings

_SNAPSHOT_STEPS = 32


@dataclass(frozen=True)
class BranchResult:
    """What became of one variant."""

    label: str
    """As in its Branch."""
    status: Literal["trained", "failed"]
    """`failed`: training diverged twice; the state is then empty."""
    reason: str
    """Why it failed, else empty."""
    kept: Literal["start", "trained"]
    """Which of the two was better on the held-out batches, and is in `state`."""
    state: dict[str, Tensor] = field(repr=False)
    """Layer-local names, float32."""
    curve: list[float] = field(repr=False)
    """The loss of every step."""
    start_loss: float
    """Held-out loss of the untrained start."""
    final_loss: float
    """Held-out loss of what was kept."""
    learning_rate: float
    """Peak of the schedule; a third of what it began with after a loss was not finite."""
    trials: list[Trial] = field(repr=False)
    """What the rate was found by, as they were tried; none where it is pinned or there was no room."""


@tensor_cores()
def train_layer(
    parent_layer: Any,
    branches: list[Branch],
    batches: Iterable[LayerBatch],
    settings: LocalSettings,
    on_step: Callable[[int, int, float], None] | None = None,
    cut: Callable[[LayerBatch], Sequence[LayerBatch]] | None = None,
    on_trial: Callable[[int, int], None] | None = None,
    following: Sequence[Any] = (),
) -> list[BranchResult]:
    """Trains all variants of one layer on the parent's inputs to it; results stand in the order of `branches`.

    `parent_layer` has both subblocks and is frozen. `batches` yields `settings.steps` + `settings.held_out` times. A
    variant whose loss stops being finite goes back to its last finite weights once, at a third of the rate; the second
    time it is failed and the others go on unchanged. Where the rate is to be found, each variant's own is, on the first
    batches, which are kept for it. `on_step(step, steps, loss)` is called after every step, 1-based, with the mean loss
    of the variants still in training, NaN when there are none left; `on_trial(done, all)` after every step of a range
    test. `cut` gives a batch as parts, whose gradients add up: the same effective batch in less memory.
    `following` are the parent's layers behind this one, for variants of several layers, as many as these need.

    Raises:
        ValueError: too few or too many batches.
    """
    if not branches:
        return []
    trainers = [_Trainer(branch, settings) for branch in branches]
    behind = layer_behind(parent_layer, settings.through)
    held_out: deque[LayerBatch] = deque()
    coming = _held_back(batches, settings.held_out, held_out)

    def targets_of(batch: LayerBatch) -> list[Targets]:
        return layer_targets(parent_layer, behind, batch, settings.through, cut, branches, following)

    def told(step: int, losses: Sequence[float]) -> None:
        if on_step is not None:
            on_step(step, settings.steps, sum(losses) / len(losses) if losses else math.nan)

    plan = plan_local_trials(settings)
    # What a rate is judged on is trained on later, whichever it is.
    first = list(islice(coming, plan.steps + settings.held_out)) if plan.rates else []
    step = tried = 0
    if len(first) == plan.steps + settings.held_out:
        _find_rates(trainers, plan.rates, first[: plan.steps], first[plan.steps :], targets_of, on_trial)
        step = tried = plan.steps
        for place in range(tried):
            told(place + 1, [trainer.curve[place] for trainer in trainers if place < len(trainer.curve)])
    for step, batch in enumerate(chain(first[tried:], coming), start=tried + 1):
        if step > settings.steps:
            raise ValueError(f"more batches than the {settings.steps} steps and {settings.held_out} held out")
        told(step, _train([trainer for trainer in trainers if not trainer.reason], step - 1, targets_of(batch)))
    if step < settings.steps or len(held_out) < settings.held_out:
        raise ValueError(
            f"{step + len(held_out)} batches came, but {settings.steps} to train on and {settings.held_out} held out "
            "were wanted: give more text or fewer tokens"
        )
    judged = [targets_of(batch) for batch in held_out]
    return [trainer.result(judged) for trainer in trainers]


def _find_rates(
    trainers: Sequence[_Trainer],
    rates: Sequence[float],
    first: Sequence[LayerBatch],
    judging: Sequence[LayerBatch],
    targets_of: Callable[[LayerBatch], list[Targets]],
    on_trial: Callable[[int, int], None] | None,
) -> None:
    """Leaves every variant behind the first steps at the rate that suits it; each tries what it needs to."""
    done = 0

    def train(trying: Sequence[_Trainer]) -> None:
        nonlocal done
        for step, batch in enumerate(first if trying else ()):
            _train([trainer for trainer in trying if not trainer.reason], step, targets_of(batch))
            done += 1
            if on_trial is not None:
                on_trial(done, (len(rates) + 1) * len(first))

    while trying := [(each, rate) for each in trainers if (rate := next_rate(rates, each.trials)) is not None]:
        for trainer, rate in trying:
            trainer.restart(rate)
        train([trainer for trainer, _ in trying])
        judged = [targets_of(batch) for batch in judging]
        for trainer, rate in trying:
            trainer.trials.append(Trial(rate, trainer.error(judged)))
    train([trainer for trainer in trainers if trainer.take_best_rate()])


def _train(trainers: Sequence[_Trainer], step: int, targets: list[Targets]) -> list[float]:
    """One step of each on a batch; the losses before it."""
    losses = _values([trainer.backward(targets) for trainer in trainers])
    for trainer, loss in zip(trainers, losses, strict=True):
        trainer.advance(step, loss)
    return losses


class _Trainer:
    """One variant's weights, optimizer and history."""

    def __init__(self, branch: Branch, settings: LocalSettings) -> None:
        self.branch = branch
        self.settings = settings
        self.parameters = [parameter for parameter in branch.layer.parameters() if parameter.requires_grad]
        self.start = self._copy()
        self.trials: list[Trial] = []
        self._begin(settings.learning_rate)

    def _begin(self, rate: float) -> None:
        self.rate = rate
        self.last_finite = self.start
        self.optimizer = self._new_optimizer()
        self.curve: list[float] = []
        self.setbacks = 0
        self.reason = ""

    def restart(self, rate: float) -> None:
        """From the start, at another rate."""
        self._load(self.start)
        self._begin(rate)

    @torch.no_grad()
    def error(self, judged: list[list[Targets]]) -> float | None:
        """The loss on these batches; None if it, or one before, is not finite."""
        loss = self._held_out_loss(judged)
        return None if self.setbacks or not math.isfinite(loss) else loss

    def take_best_rate(self) -> bool:
        """Back to the start at the rate that was found, and whether that was needed: the last one tried may go on."""
        last, found = self.trials[-1], best_rate(self.trials)
        if last.error is not None and found == last.learning_rate:
            return False
        self.restart(found)
        return True

    def backward(self, parts: list[Targets]) -> Tensor:
        """Leaves the gradients of a batch in the parameters; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in parts:
            loss = part.loss(self.branch)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return _sum(losses)

    def advance(self, step: int, loss: float) -> None:
        """One step of the optimizer, or back to the last finite weights."""
        self.curve.append(loss)
        if not math.isfinite(loss):
            self._set_back(step)
            return
        if step % _SNAPSHOT_STEPS == 0 and step > 0:
            self.last_finite = self._copy()
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        share = warmup_linear(step, self.settings.steps, self.settings.warmup)
        set_learning_rate(self.optimizer, self.rate * share)
        self.optimizer.step()

    def _set_back(self, step: int) -> None:
        if self.setbacks == 1:
            self.optimizer.zero_grad(set_to_none=True)
            self.reason = (
                f"loss was not finite at step {step + 1} of {self.settings.steps}, after going back once to a learning "
                f"rate of {self.rate:g}"
            )
            return
        self.setbacks = 1
        self.rate /= 3.0
        self._load(self.last_finite)
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.AdamW:
        return adamw(self.parameters, self.rate, self.settings.betas, self.settings.weight_decay)

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _load(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    @torch.no_grad()
    def result(self, judged: list[list[Targets]]) -> BranchResult:
        """Start against end on the held-out batches; the better one is kept."""
        trained = self._copy()
        final_loss = self._held_out_loss(judged)
        self._load(self.start)
        start_loss = self._held_out_loss(judged)
        if not self.reason and not math.isfinite(final_loss):
            self.reason = "loss on the held-out batches was not finite after the last step"
        if self.reason:
            return self._result("failed", "start", {}, start_loss, final_loss)
        kept: Literal["start", "trained"] = "start" if start_loss <= final_loss else "trained"
        if kept == "trained":
            self._load(trained)
        state = {name: tensor.detach().clone() for name, tensor in self.branch.layer.state_dict().items()}
        return self._result("trained", kept, state, start_loss, min(start_loss, final_loss))

    def _result(
        self,
        status: Literal["trained", "failed"],
        kept: Literal["start", "trained"],
        state: dict[str, Tensor],
        start_loss: float,
        final_loss: float,
    ) -> BranchResult:
        return BranchResult(
            self.branch.label, status, self.reason, kept, state, self.curve, start_loss, final_loss,
            self.rate, self.trials,
        )  # fmt: skip

    def _held_out_loss(self, judged: list[list[Targets]]) -> float:
        losses = [_sum([part.loss(self.branch) for part in parts]) for parts in judged]
        return sum(_values(losses)) / len(judged)


def _sum(losses: list[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _values(losses: list[Tensor]) -> list[float]:
    """Scalars as floats, with one wait for the device."""
    return torch.stack(losses).tolist() if losses else []


def _held_back(batches: Iterable[LayerBatch], count: int, kept: deque[LayerBatch]) -> Iterator[LayerBatch]:
    """Passes batches on, `count` late, so that the last `count` stay in `kept`."""
    for batch in batches:
        kept.append(batch)
        if len(kept) > count:
            yield kept.popleft()
