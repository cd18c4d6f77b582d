"""Global distillation: the assembled child trained as a whole against its parent.

Loss (Puzzle, arXiv 2411.19146, section 5, without the LM loss): sum over layers of mean over tokens
(1 - cosine of the layer outputs) + KL(parent || child) of the next-token distributions, nats per token.
Shapes: B batch, S sequence, D model width, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from inlay.distill.checkpoint import Checkpoint, TrainingState
from inlay.distill.optimize import adamw, precision, set_learning_rate, warmup_cosine
from inlay.distill.parallel import Ranks, is_sharded, laid_out_like, local, whole_number
from inlay.kernels import kl_loss

OnStep = Callable[[int, int, dict[str, float]], None]
_SNAPSHOT_STEPS = 32
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class GlobalSettings:
    """How the child is trained."""

    steps: int
    """Optimizer steps, one effective batch each; at least 1."""
    learning_rate: float = 3e-4
    """Peak rate; above 0."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; 0 to 1."""
    floor: float = 0.0
    """Share of the peak rate that the fall ends at; 0 to 1."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging; each in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; at least 0."""
    clip: float = 1.0
    """Largest norm of the gradient; above 0."""
    micro_batch: int | None = None
    """Sequences of a batch that a rank works on at once; None for all. Gradients of the parts are added up."""

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.micro_batch is not None and self.micro_batch < 1):
            raise ValueError(f"`steps` is {self.steps}, `micro_batch` {self.micro_batch}: both must be at least 1")
        if not (0 <= self.warmup <= 1 and 0 <= self.floor <= 1):
            raise ValueError(f"`warmup` is {self.warmup} and `floor` {self.floor}: both are shares from 0 to 1")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.clip > 0):
            raise ValueError(
                f"`learning_rate` is {self.learning_rate}, `weight_decay` {self.weight_decay}, `clip` {self.clip}: "
                "rate and clip must be above 0, the decay at least 0"
            )


@dataclass(frozen=True)
class GlobalResult:
    """What became of the child; its weights are in the module that was given."""

    status: Literal["trained", "failed"]
    """`failed`: the loss stopped being finite twice; the module then holds its last finite weights."""
    reason: str
    """Why it failed, else empty."""
    steps: int
    """Steps done, those before a resume included."""
    tokens: int
    """Tokens trained on, those before a resume included."""
    curve: list[dict[str, float]] = field(repr=False)
    """Loss, kl_nats and cosine of every step."""


def distill_globally(
    parent: Any,
    child: Any,
    batches: Iterable[Tensor],
    settings: GlobalSettings,
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks | None = None,
) -> GlobalResult:
    """Trains the child in place against its frozen parent.

    `parent` and `child` have `forward_hidden(ids_BS) -> (layer outputs, a list of [B, S, D]; final normed hidden
    [B, S, D])` and `head_VD`; `child` is a module in float32. `batches` yields `settings.steps` batches of token ids
    [B, S], the same ones at every call: with a `checkpoint` that holds a state, training goes on behind it, bit for
    bit as if it had never stopped. `on_step(step, steps, losses)` is called after every step, 1-based.

    With `ranks`, every one of their processes calls this with the same whole batches and its own copy (or, sharded, its
    shard) of both models: each works on its rows, and loss, gradients and clipping are those of the whole batch. Losses
    are the same in all of them. A state saved by any number of ranks can be continued by any other; by the same
    number, bit for bit.

    Raises:
        ValueError: too few batches, a batch that cannot be cut by rank, or a checkpoint of other settings or of another
            child.
    """
    parameters = {name: p for name, p in child.named_parameters() if p.requires_grad}
    ranks = ranks or Ranks()
    run = _Run(parameters, settings, ranks)
    if checkpoint is not None:
        saved = checkpoint.load()
        if saved is not None:
            run.restore(saved)
    for step, ids_BS in enumerate(batches):
        if step >= settings.steps or run.reason:
            break
        if step < run.done:
            continue
        run.optimizer.zero_grad(set_to_none=True)
        losses = _accumulate_gradients(parent, child, ids_BS, settings, ranks)
        ranks.add_gradients(parameters.values())
        run.advance(step, losses, ids_BS.numel())
        if on_step is not None:
            on_step(run.done, settings.steps, losses)
        if checkpoint is not None and (
            run.done == settings.steps or ranks.agree(checkpoint.due(run.done), ids_BS.device)
        ):
            checkpoint.save(run.state())
    if run.done < settings.steps and not run.reason:
        raise ValueError(f"{run.done} batches came but {settings.steps} steps were wanted: give more text or epochs")
    return GlobalResult("failed" if run.reason else "trained", run.reason, run.done, run.tokens, run.curve)


class _Run:
    """Weights, optimizer, history: all that a checkpoint holds."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: GlobalSettings, ranks: Ranks) -> None:
        self.parameters = parameters
        self.settings = settings
        self.ranks = ranks
        self.rate = settings.learning_rate
        self.optimizer = self._new_optimizer()
        self.last_finite = self._copy()
        self.done = 0
        self.tokens = 0
        self.curve: list[dict[str, float]] = []
        self.setbacks = 0
        self.reason = ""

    def advance(self, step: int, losses: dict[str, float], tokens: int) -> None:
        """One step of the optimizer, or back to the last finite weights."""
        self.done = step + 1
        self.tokens += tokens
        self.curve.append(losses)
        weights = list(self.parameters.values())
        gradient_norm = whole_number(nn.utils.clip_grad_norm_(weights, self.settings.clip))
        if not (abs(losses["loss"]) < float("inf") and gradient_norm < float("inf")):
            self._set_back(step)
            return
        if step % _SNAPSHOT_STEPS == 0:
            self.last_finite = self._copy()
        share = warmup_cosine(step, self.settings.steps, self.settings.warmup, self.settings.floor)
        set_learning_rate(self.optimizer, self.rate * share)
        self.optimizer.step()

    def state(self) -> TrainingState:
        """All of it from the first rank; from the others their rows of what is sharded."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
            tensors[f"last_finite.{name}"] = self.last_finite[name]
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}.{name}"] = value
        progress = {
            "settings": self._named_settings(), "done": self.done, "tokens": self.tokens, "curve": self.curve,
            "rate": self.rate, "setbacks": self.setbacks, "reason": self.reason,
        }  # fmt: skip
        return TrainingState(
            {name: local(t) for name, t in tensors.items() if self.ranks.index == 0 or is_sharded(t)}, progress
        )

    def restore(self, saved: TrainingState) -> None:
        progress = saved.progress
        if progress["settings"] != self._named_settings():
            raise ValueError(
                f"the checkpoint was written with other settings ({progress['settings']}), now they are "
                f"{self._named_settings()}: restore them or remove the checkpoint"
            )
        names = {name.removeprefix("weight.") for name in saved.tensors if name.startswith("weight.")}
        if names != set(self.parameters):
            raise ValueError("the checkpoint belongs to a child with other weights: remove it to start anew")
        self.done, self.tokens, self.curve = progress["done"], progress["tokens"], progress["curve"]
        self.rate, self.setbacks, self.reason = progress["rate"], progress["setbacks"], progress["reason"]
        # One tensor after the other: a sharded run never holds more of the state than its shards and one whole tensor.
        for name, parameter in self.parameters.items():
            self.last_finite[name] = laid_out_like(saved.tensors[f"last_finite.{name}"], parameter)
            self._load({name: laid_out_like(saved.tensors[f"weight.{name}"], parameter)})
            if f"step.{name}" in saved.tensors:
                self.optimizer.state[parameter] = {
                    "step": saved.tensors[f"step.{name}"].to(parameter.device, copy=True),
                    **{moment: laid_out_like(saved.tensors[f"{moment}.{name}"], parameter) for moment in _MOMENTS},
                }

    def _named_settings(self) -> str:
        """What a checkpoint must agree with: all but how many sequences fit at once, which may shrink on the way."""
        return repr(replace(self.settings, micro_batch=None))

    def _set_back(self, step: int) -> None:
        self._load(self.last_finite)
        if self.setbacks == 1:
            self.reason = (
                f"loss was not finite at step {step + 1} of {self.settings.steps}, after going back once to a learning "
                f"rate of {self.rate:g}"
            )
            return
        self.setbacks = 1
        self.rate /= 3.0
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.AdamW:
        return adamw(self.parameters.values(), self.rate, self.settings.betas, self.settings.weight_decay)

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def _load(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(value)


def _accumulate_gradients(
    parent: Any, child: Any, ids_BS: Tensor, settings: GlobalSettings, ranks: Ranks
) -> dict[str, float]:
    """Adds the gradients of this rank's rows to the child, part by part; returns the whole batch's mean losses.

    A part's mean loss counts by its share of the whole batch, so that sums over parts and ranks are the batch's mean
    however it is cut.
    """
    own_BS = ranks.part(ids_BS)
    cosine_sum, kl_sum = 0.0, 0.0
    size = settings.micro_batch or len(own_BS)
    for first in range(0, len(own_BS), size):
        part_BS = own_BS[first : first + size]
        share = len(part_BS) / len(ids_BS)
        cosine, kl = _losses(parent, child, part_BS)
        ((cosine + kl) * share).backward()  # type: ignore[no-untyped-call]
        cosine_sum += float(cosine.detach()) * share
        kl_sum += float(kl.detach()) * share
    cosine_sum, kl_sum = ranks.add([cosine_sum, kl_sum], ids_BS.device)
    return {"loss": cosine_sum + kl_sum, "cosine": cosine_sum, "kl_nats": kl_sum}


def _losses(parent: Any, child: Any, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        parent_layers, parent_hidden_BSD = parent.forward_hidden(ids_BS)
    with precision(parent_hidden_BSD):
        child_layers, child_hidden_BSD = child.forward_hidden(ids_BS)
        cosine = torch.stack(
            [
                (1.0 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)).mean()
                for ours, theirs in zip(child_layers, parent_layers, strict=True)
            ]
        ).sum()
        kl = kl_loss(parent_hidden_BSD.flatten(0, 1), child_hidden_BSD.flatten(0, 1), parent.head_VD, child.head_VD)
    return cosine, kl
