"""Global distillation: the assembled child trained as a whole against its parent, and the best of what it was.

What it is trained for is in `objective.py`. It is judged by its KL on held-out text, before the first step and at
intervals, and ends as it was when that was least: a training that only harms leaves the child as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inlay.distill.checkpoint import Checkpoint, SavedState, TrainingState
from inlay.distill.judge import Judge, ParentHidden
from inlay.distill.objective import Losses, copied, gradients, put_back
from inlay.distill.optimize import adamw, set_learning_rate, tensor_cores, warmup_linear
from inlay.distill.parallel import Ranks, is_sharded, rows_of
from inlay.distill.rates import RATES, Trial, best_rate, next_rate, plan_trials
from inlay.distill.rounding import UNROUNDED, Rounding
from inlay.distill.settings import GlobalSettings

OnStep = Callable[[int, int, Losses], None]
OnTrial = Callable[[int, int], None]
OnJudged = Callable[[Sequence[tuple[int, float | None]]], None]
Place = tuple[int, int]
"""Where a training is: the number of its trial, or `RATES` once it has its rate, and that of the batch."""
_BEST = "best."
"""What a checkpoint calls the best weights, before their names."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class GlobalResult:
    """What became of the child; its weights are in the module that was given."""

    status: Literal["trained", "failed"]
    """`failed`: its KL on the held-out text was never finite; the module then holds the weights that it came with."""
    reason: str
    """Why it failed, or stopped before its last step; else empty."""
    steps: int
    """Steps done, those before a resume included."""
    tokens: int
    """Tokens trained on, those before a resume included; trials of rates are not counted."""
    curve: list[Losses] = field(repr=False)
    """Loss, kl_nats and cosine of every step; empty for a step that was taken back, since they were not finite."""
    learning_rate: float
    """Peak of the schedule; a third of what it began with after a step was taken back."""
    trials: list[Trial]
    """What the rate was found by, as they were tried; none where it is pinned or there was no room."""
    held_out: list[tuple[int, float | None]]
    """(steps done, KL in nats per token on the held-out text), the start's first; None where it was not finite."""
    best_step: int
    """After how many steps the child was what the module holds now; 0 for its start."""

    @property
    def start_kl_nats(self) -> float | None:
        """On the held-out text, before the first step."""
        return self.held_out[0][1]

    @property
    def best_kl_nats(self) -> float | None:
        """On the held-out text, of what the module holds now."""
        return dict(self.held_out)[self.best_step]

    @property
    def improved(self) -> bool:
        """Whether training made it better than it came."""
        return self.best_step > 0


@tensor_cores()
def distill_globally(
    parent: Any,
    child: Any,
    batches: Iterable[Tensor],
    held_out: Sequence[Tensor],
    settings: GlobalSettings,
    on_step: OnStep | None = None,
    on_trial: OnTrial | None = None,
    on_judged: OnJudged | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks | None = None,
    rounding: Rounding = UNROUNDED,
) -> GlobalResult:
    """Trains the child in place against its frozen parent; it ends as it was when its KL on `held_out` was least.

    `parent` and `child` have `forward_hidden(ids_BS) -> (layer outputs, a list of [B, S, D]; final normed hidden
    [B, S, D])` and `head_VD`; `child` is a module in float32, of which what requires no gradient stays as it is.
    `batches` yields `settings.steps` batches of token ids [B, S], the same ones at every call: with a `checkpoint` that
    holds a state, training goes on behind it, bit for bit as if it had never stopped. `held_out` has batches that are
    not among them. `on_step(step, steps, losses)` is called after every step, 1-based, with the losses of the result's
    curve; `on_trial(done, all)` after every step of a range test; `on_judged(held_out)` with all judgements so far, as
    the result has them, whenever there is another one.

    A batch whose loss is not finite takes the child back to the best that it was, once, at a third of the rate; the
    second one ends the training. Beside weights, gradients and two moments it holds a copy of the best weights on the
    host, 4 bytes a weight (of a shard: a rank its own).

    With `rounding` the child computes with rounded weights wherever it is trained or judged, and what is trained, kept
    and left in it are those behind them, of which there is a copy while it computes.

    With `ranks`, every one of their processes calls this with the same whole batches and its own copy (or, sharded, its
    shard) of both models: each works on its rows, and loss, gradients and clipping are those of the whole batch. Losses
    and decisions are the same in all of them. A state saved by any number of ranks can be continued by any other; by
    the same number, bit for bit.

    Raises:
        ValueError: too few batches, a batch that cannot be cut by rank, or a checkpoint of other settings or of another
            child.
    """
    steps = training(
        parent, child, batches, held_out, settings, on_step, on_trial, on_judged, checkpoint, ranks, rounding
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: GlobalResult = end.value
            return result


def training(
    parent: Any,
    child: Any,
    batches: Iterable[Tensor],
    held_out: Sequence[Tensor],
    settings: GlobalSettings,
    on_step: OnStep | None = None,
    on_trial: OnTrial | None = None,
    on_judged: OnJudged | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks | None = None,
    rounding: Rounding = UNROUNDED,
    seen: ParentHidden | None = None,
) -> Training:
    """What `distill_globally` does, one batch each time it is asked; it says before each where it is.

    `seen` has the parent's hidden states of the held-out text, where other trainings look at them too.
    """
    parameters = {name: p for name, p in child.named_parameters() if p.requires_grad}
    ranks = ranks or Ranks()
    judge = Judge(parent, child, held_out, settings, ranks, rounding, seen)
    if not parameters:
        result = _untrained(judge.kl_nats(), settings)
        if on_judged is not None:
            on_judged(result.held_out)
        return result
    run = _Run(parameters, settings, ranks, rounding)
    coming = iter(batches)

    def keep(ended: bool) -> None:
        if checkpoint is not None:
            checkpoint.keep(run.done, ended, run.state)

    def told(step: int, losses: Losses) -> None:
        if on_step is not None:
            on_step(step, settings.steps, losses)

    def judged(kl_nats: float | None) -> None:
        run.judge(kl_nats)
        tell_judged()

    def tell_judged() -> None:
        if on_judged is not None:
            on_judged(run.held_out)

    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        run.restore(saved)
        tell_judged()
    else:
        judged(judge.kl_nats())
        plan = plan_trials(settings)
        first = list(islice(coming, plan.steps))
        if plan.rates and len(first) == plan.steps:
            trying = _Trying(run, parent, child, first, judge, len(plan.rates), on_trial)
            while (rate := next_rate(plan.rates, run.trials)) is not None:
                error = yield from trying.kl_after(rate, len(run.trials))
                run.trials.append(Trial(rate, error))
            last = run.trials[-1]
            if last.error is None or best_rate(run.trials) != last.learning_rate:
                run.restart(best_rate(run.trials))
            elif run.done == settings.judged_every:
                judged(last.error)
        coming = chain(first, coming)
        keep(ended=False)
        for number, tried in enumerate(run.curve, start=1):
            told(number, tried)
    for step, ids_BS in enumerate(coming):
        if step >= settings.steps or run.reason:
            break
        if step < run.done:
            continue
        yield RATES, step
        losses = gradients(parent, child, parameters, ids_BS, settings, ranks, rounding)
        run.advance(step, losses, ids_BS.numel())
        if run.done % settings.judged_every == 0 or run.done == settings.steps:
            judged(judge.kl_nats())
        told(run.done, run.curve[-1])
        keep(ended=run.done == settings.steps or run.reason != "")
    if run.done < settings.steps and not run.reason:
        raise ValueError(f"{run.done} batches came but {settings.steps} steps were wanted: give more text or epochs")
    return run.result()


Training = Generator[Place, None, GlobalResult]
"""A training that goes on whenever it is asked where it is; it ends with its result."""


def _untrained(kl_nats: float | None, settings: GlobalSettings) -> GlobalResult:
    """What becomes of a child that has nothing to train."""
    status: Literal["trained", "failed"] = "failed" if kl_nats is None else "trained"
    return GlobalResult(status, "nothing of it is trained", 0, 0, [], settings.learning_rate, [], [(0, kl_nats)], 0)


@dataclass
class _Trying:
    """A range test: the first steps of the training, from its start, at one rate after the other."""

    run: _Run
    parent: Any
    child: Any
    batches: Sequence[Tensor]
    judge: Judge
    trials_at_most: int
    on_trial: OnTrial | None
    tried: int = 0

    def kl_after(self, rate: float, trial: int) -> Generator[Place, None, float | None]:
        """The KL on the held-out text after the steps at a rate; the run is left there."""
        run, settings = self.run, self.run.settings
        run.restart(rate)
        for step, ids_BS in enumerate(self.batches):
            yield trial, step
            losses = gradients(self.parent, self.child, run.parameters, ids_BS, settings, run.ranks, run.rounding)
            if losses is None:
                self.tried += len(self.batches) - step
                return None
            run.advance(step, losses, ids_BS.numel())
            self.tried += 1
            if self.on_trial is not None:
                self.on_trial(self.tried, self.trials_at_most * len(self.batches))
        return self.judge.kl_nats()


class _Run:
    """Weights, optimizer, history: all that a checkpoint holds."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], settings: GlobalSettings, ranks: Ranks, rounding: Rounding
    ) -> None:
        self.parameters = parameters
        self.settings = settings
        self.ranks = ranks
        self.rounding = rounding
        self.rate = settings.learning_rate
        self.trials: list[Trial] = []
        self.optimizer = self._new_optimizer()
        self.best: dict[str, Tensor] = {}
        self.best_step = 0
        self.held_out: list[tuple[int, float | None]] = []
        self.done = 0
        self.tokens = 0
        self.curve: list[Losses] = []
        self.setbacks = 0
        self.reason = ""

    def restart(self, rate: float) -> None:
        """From the best weights, which a range test leaves to be the start's, at another rate."""
        put_back(self.parameters, self.best)
        self.rate = rate
        self.optimizer = self._new_optimizer()
        self.done, self.tokens, self.curve = 0, 0, []

    def advance(self, step: int, losses: Losses | None, tokens: int) -> None:
        """One step of the optimizer, or back to the best weights."""
        self.done = step + 1
        self.tokens += tokens
        self.curve.append(losses or {})
        if losses is None:
            self._set_back()
            return
        share = warmup_linear(step, self.settings.steps, self.settings.warmup)
        set_learning_rate(self.optimizer, self.rate * share)
        self.optimizer.step()

    def judge(self, kl_nats: float | None) -> None:
        """Notes the KL on the held-out text, and the weights if they are the best so far."""
        least = min((kl for _, kl in self.held_out if kl is not None), default=float("inf"))
        self.held_out.append((self.done, kl_nats))
        if not self.best or (kl_nats is not None and kl_nats < least):
            self.best, self.best_step = copied(self.parameters), self.done

    def result(self) -> GlobalResult:
        """What became of it; the child is given its best weights."""
        put_back(self.parameters, self.best)
        failed = all(kl is None for _, kl in self.held_out)
        if failed and not self.reason:
            self.reason = "its KL on the held-out text was never finite"
        return GlobalResult(
            "failed" if failed else "trained", self.reason, self.done, self.tokens, self.curve,
            self.rate, self.trials, self.held_out, self.best_step,
        )  # fmt: skip

    def state(self) -> TrainingState:
        """All of it from the first rank; from the others their rows of what is sharded."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}.{name}"] = value
        held = {name: tensor for name, tensor in tensors.items() if self.ranks.index == 0 or is_sharded(tensor)}
        best = {
            f"{_BEST}{name}": rows_of(value, self.parameters[name])
            for name, value in self.best.items()
            if self.ranks.index == 0 or is_sharded(self.parameters[name])
        }
        progress = {
            "settings": self._named_settings(), "done": self.done, "tokens": self.tokens, "curve": self.curve,
            "rate": self.rate, "trials": [asdict(trial) for trial in self.trials], "setbacks": self.setbacks,
            "reason": self.reason, "held_out": self.held_out, "best_step": self.best_step,
        }  # fmt: skip
        return TrainingState(held, progress, best)

    def restore(self, saved: SavedState) -> None:
        progress = saved.progress
        if progress["settings"] != self._named_settings():
            raise ValueError(
                f"the checkpoint was written with other settings ({progress['settings']}), now they are "
                f"{self._named_settings()}: restore them or remove the checkpoint"
            )
        names = {name.removeprefix("weight.") for name in saved.names if name.startswith("weight.")}
        if names != set(self.parameters):
            raise ValueError("the checkpoint belongs to a child with other weights: remove it to start anew")
        self.done, self.tokens, self.curve = progress["done"], progress["tokens"], progress["curve"]
        self.rate, self.setbacks, self.reason = progress["rate"], progress["setbacks"], progress["reason"]
        self.trials = [Trial(**trial) for trial in progress["trials"]]
        self.held_out = [(step, kl_nats) for step, kl_nats in progress["held_out"]]
        self.best_step = progress["best_step"]
        self.best = copied(self.parameters)
        read: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            read[f"weight.{name}"] = parameter.detach()
            read[f"{_BEST}{name}"] = rows_of(self.best[name], parameter)
            if f"step.{name}" in saved.names:
                moments = {moment: torch.empty_like(parameter, requires_grad=False) for moment in _MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
                read |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        saved.read_into(read)

    def _named_settings(self) -> str:
        """What a checkpoint must agree with: all but how many sequences fit at once, which may shrink on the way."""
        return repr(replace(self.settings, micro_batch=None))

    def _set_back(self) -> None:
        put_back(self.parameters, self.best)
        if self.setbacks == 1:
            self.reason = (
                f"loss was not finite at step {self.done} of {self.settings.steps}, after going back once to a "
                f"learning rate of {self.rate:g}"
            )
            return
        self.setbacks = 1
        self.rate /= 3.0
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.AdamW:
        return adamw(self.parameters.values(), self.rate, self.settings.betas, self.settings.weight_decay)
