"""Local distillation: every variant of one layer trained at once, on what the parent's own layers see.

One parent pass over a batch feeds all variants of both subblocks (Puzzle, arXiv 2411.19146, section 3.2, decoupled
blockwise local distillation). Shapes: B batch, S sequence, D model width.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.distill.optimize import adamw, precision, set_learning_rate, tensor_cores, warmup_cosine
from inlay.distill.settings import LocalSettings, Through
from inlay.distill.updates import Slot, error_of, slot_input, update_of
from inlay.kernels import update_mse, update_scale

_SNAPSHOT_STEPS = 32


@dataclass(frozen=True)
class LayerBatch:
    """What the parent's layer reads in one batch and, where it is at hand, what it made of it."""

    hidden_BSD: Tensor
    """The layer's input."""
    context: Any
    """What its attention needs besides."""
    outcome: tuple[Tensor, Tensor] | None = None
    """The states behind its attention and behind its ffn, both [B, S, D], float32; None: the layer is run for them."""


@dataclass(frozen=True)
class Branch:
    """One variant in training."""

    label: str
    """`attention:kv_heads=1`."""
    slot: Slot
    """The subblock that the variant replaces."""
    layer: Any
    """A layer that has only this slot, in float32; its parameters are trained in place."""
    alone: bool = False
    """Whether an ffn reads what the layer reads and answers for all that the layer adds, attention left out."""


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


@tensor_cores()
def train_layer(
    parent_layer: Any,
    branches: list[Branch],
    batches: Iterable[LayerBatch],
    settings: LocalSettings,
    on_step: Callable[[int, int, float], None] | None = None,
    cut: Callable[[LayerBatch], Sequence[LayerBatch]] | None = None,
) -> list[BranchResult]:
    """Trains all variants of one layer on the parent's inputs to it; results stand in the order of `branches`.

    `parent_layer` has both subblocks and is frozen. `batches` yields `settings.steps` + `settings.held_out` times. A
    variant whose loss stops being finite goes back to its last finite weights once, at a third of the rate; the second
    time it is failed and the others go on unchanged. `on_step(step, steps, loss)` is called after every step, 1-based,
    with the mean loss of the variants still in training, NaN when there are none left. `cut` gives a batch as parts,
    whose gradients add up: the same effective batch in less memory.

    Raises:
        ValueError: too few or too many batches.
    """
    if not branches:
        return []
    trainers = [_Trainer(branch, settings) for branch in branches]
    behind = _behind(parent_layer, settings.through)
    held_out: deque[LayerBatch] = deque()
    step = 0
    for step, batch in enumerate(_held_back(batches, settings.held_out, held_out), start=1):
        if step > settings.steps:
            raise ValueError(f"more batches than the {settings.steps} steps and {settings.held_out} held out")
        targets = _batch_targets(parent_layer, behind, batch, settings.through, cut, branches)
        live = [trainer for trainer in trainers if not trainer.reason]
        losses = _values([trainer.backward(targets) for trainer in live])
        for trainer, loss in zip(live, losses, strict=True):
            trainer.advance(step - 1, loss)
        if on_step is not None:
            on_step(step, settings.steps, sum(losses) / len(losses) if losses else math.nan)
    if step < settings.steps or len(held_out) < settings.held_out:
        raise ValueError(
            f"{step + len(held_out)} batches came, but {settings.steps} to train on and {settings.held_out} held out "
            "were wanted: give more text or fewer tokens"
        )
    judged = [_batch_targets(parent_layer, behind, batch, settings.through, cut, branches) for batch in held_out]
    return [trainer.result(judged) for trainer in trainers]


def _behind(parent_layer: Any, through: Through) -> Any:
    """The parent's layer whose frozen ffn passes gradients on to an attention variant.

    Of a float16 parent a float32 copy, which computes in bfloat16 as all that is trained does.
    """
    if through == "layer" and next(parent_layer.parameters()).dtype == torch.float16:
        return copy.deepcopy(parent_layer).float()
    return parent_layer


def _batch_targets(
    parent_layer: Any,
    behind: Any,
    batch: LayerBatch,
    through: Through,
    cut: Callable[[LayerBatch], Sequence[LayerBatch]] | None,
    branches: Sequence[Branch],
) -> list[_Targets]:
    """The parent's side of a batch, part by part; errors are relative to the whole batch, so that parts' losses add."""
    parts = [batch] if cut is None else cut(batch)
    found = [_Targets(parent_layer, behind, part, through, branches) for part in parts]
    if len(found) > 1:
        scales = {place: torch.stack([part.scales[place] for part in found]).sum() for place in found[0].scales}
        for part in found:
            part.scales = scales
    return found


class _Targets:
    """The parent's side of one batch, or a part of one: what every variant reads, and what it should answer."""

    def __init__(
        self, parent_layer: Any, behind: Any, batch: LayerBatch, through: Through, branches: Sequence[Branch]
    ) -> None:
        with torch.no_grad():
            attention = slot_input(parent_layer, "attention", batch.hidden_BSD, batch.context)
            if batch.outcome is None:
                attention_BSD = update_of(parent_layer, attention)
                ffn = slot_input(parent_layer, "ffn", batch.hidden_BSD + attention_BSD, batch.context)
                ffn_BSD = update_of(parent_layer, ffn)
            else:
                middle_BSD, output_BSD = batch.outcome
                attention_BSD, ffn_BSD = middle_BSD - batch.hidden_BSD, output_BSD - middle_BSD
                ffn = slot_input(parent_layer, "ffn", middle_BSD, batch.context)
            # By slot, and whether a branch stands alone in its layer.
            self.inputs = {("attention", False): attention, ("ffn", False): ffn}
            self.answers = {("attention", False): attention_BSD, ("ffn", False): ffn_BSD}
            if through == "layer":
                self.answers["attention", False] = attention_BSD + ffn_BSD
            if any(branch.alone for branch in branches):
                self.inputs["ffn", True] = slot_input(parent_layer, "ffn", batch.hidden_BSD, batch.context)
                self.answers["ffn", True] = attention_BSD + ffn_BSD
            self.scales = {place: update_scale(answer) for place, answer in self.answers.items()}
        self.behind = behind
        self.through = through

    def loss(self, branch: Branch) -> Tensor:
        """The normalised error of a variant on this batch."""
        place = branch.slot, branch.alone
        given, answer, scale = self.inputs[place], self.answers[place], self.scales[place]
        with precision(given.hidden_BSD):
            if branch.slot == "ffn" or self.through == "subblock":
                return error_of(branch.layer, given, answer, scale)
            update_BSD = update_of(branch.layer, given)
            ffn = slot_input(self.behind, "ffn", given.hidden_BSD + update_BSD, given.context)
            return update_mse(update_BSD + update_of(self.behind, ffn), answer, scale)


class _Trainer:
    """One variant's weights, optimizer and history."""

    def __init__(self, branch: Branch, settings: LocalSettings) -> None:
        self.branch = branch
        self.settings = settings
        self.parameters = [parameter for parameter in branch.layer.parameters() if parameter.requires_grad]
        self.start = self._copy()
        self.last_finite = self.start
        self.rate = settings.learning_rate
        self.optimizer = self._new_optimizer()
        self.curve: list[float] = []
        self.setbacks = 0
        self.reason = ""

    def backward(self, parts: list[_Targets]) -> Tensor:
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
        share = warmup_cosine(step, self.settings.steps, self.settings.warmup, self.settings.floor)
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
    def result(self, judged: list[list[_Targets]]) -> BranchResult:
        """Start against end on the held-out batches; the better one is kept."""
        label = self.branch.label
        trained = self._copy()
        final_loss = self._held_out_loss(judged)
        self._load(self.start)
        start_loss = self._held_out_loss(judged)
        if not self.reason and not math.isfinite(final_loss):
            self.reason = "loss on the held-out batches was not finite after the last step"
        if self.reason:
            return BranchResult(label, "failed", self.reason, "start", {}, self.curve, start_loss, final_loss)
        kept: Literal["start", "trained"] = "start" if start_loss <= final_loss else "trained"
        if kept == "trained":
            self._load(trained)
        state = {name: tensor.detach().clone() for name, tensor in self.branch.layer.state_dict().items()}
        return BranchResult(label, "trained", "", kept, state, self.curve, start_loss, min(start_loss, final_loss))

    def _held_out_loss(self, judged: list[list[_Targets]]) -> float:
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
