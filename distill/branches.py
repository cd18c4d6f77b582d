"""What the variants of a layer are trained on: the batches, what each variant reads, and what it should answer.

Shapes: B batch, S sequence, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inlay.distill.optimize import precision
from inlay.distill.settings import Through
from inlay.distill.updates import Slot, SlotInput, error_of, slot_input, update_of
from inlay.kernels import update_mse, update_scale


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
class Span:
    """A whole layer that stands for neighbouring ones of the parent."""

    layer: Any
    """With both subblocks, in float32."""
    first: int
    """The layer whose input it reads, counted from the one that is trained."""
    end: int
    """The layer behind the last one for whose updates it answers."""


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
    spans: tuple[Span, ...] = ()
    """Of a variant of several neighbouring layers: what it is made of, all of it within `layer`. The error is the mean
    of theirs, and `slot` says nothing."""


def layer_behind(parent_layer: Any, through: Through) -> Any:
    """The parent's layer whose frozen ffn passes gradients on to an attention variant.

    Of a float16 parent a float32 copy, which computes in bfloat16 as all that is trained does.
    """
    if through == "layer" and next(parent_layer.parameters()).dtype == torch.float16:
        return copy.deepcopy(parent_layer).float()
    return parent_layer


def layer_targets(
    parent_layer: Any,
    behind: Any,
    batch: LayerBatch,
    through: Through,
    cut: Callable[[LayerBatch], Sequence[LayerBatch]] | None,
    branches: Sequence[Branch],
    following: Sequence[Any] = (),
) -> list[Targets]:
    """The parent's side of a batch, part by part; errors are relative to the whole batch, so that parts' losses add."""
    parts = [batch] if cut is None else cut(batch)
    found = [Targets(parent_layer, behind, part, through, branches, following) for part in parts]
    if len(found) > 1:
        scales = {place: torch.stack([part.scales[place] for part in found]).sum() for place in found[0].scales}
        for part in found:
            part.scales = scales
    return found


class Targets:
    """The parent's side of one batch, or a part of one: what every variant reads, and what it should answer."""

    def __init__(
        self,
        parent_layer: Any,
        behind: Any,
        batch: LayerBatch,
        through: Through,
        branches: Sequence[Branch],
        following: Sequence[Any] = (),
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
            self.inputs: dict[Any, SlotInput] = {("attention", False): attention, ("ffn", False): ffn}
            self.answers: dict[Any, Tensor] = {("attention", False): attention_BSD, ("ffn", False): ffn_BSD}
            if through == "layer":
                self.answers["attention", False] = attention_BSD + ffn_BSD
            if any(branch.alone for branch in branches):
                self.inputs["ffn", True] = slot_input(parent_layer, "ffn", batch.hidden_BSD, batch.context)
                self.answers["ffn", True] = attention_BSD + ffn_BSD
            self.states = [batch.hidden_BSD, batch.hidden_BSD + (attention_BSD + ffn_BSD)]
            spans = {(span.first, span.end) for branch in branches for span in branch.spans}
            for layer in following[: max((end for _, end in spans), default=1) - 1]:
                self.states.append(layer(self.states[-1], batch.context))
            self.answers |= {(first, end): self.states[end] - self.states[first] for first, end in spans}
            self.scales = {place: update_scale(answer) for place, answer in self.answers.items()}
        self.behind = behind
        self.through = through
        self.context = batch.context

    def loss(self, branch: Branch) -> Tensor:
        """The normalised error of a variant on this batch."""
        if branch.spans:
            with precision(self.states[0]):
                return torch.stack([self._span_error(span) for span in branch.spans]).mean()
        place = branch.slot, branch.alone
        given, answer, scale = self.inputs[place], self.answers[place], self.scales[place]
        with precision(given.hidden_BSD):
            if branch.slot == "ffn" or self.through == "subblock":
                return error_of(branch.layer, given, answer, scale)
            update_BSD = update_of(branch.layer, given)
            ffn = slot_input(self.behind, "ffn", given.hidden_BSD + update_BSD, given.context)
            return update_mse(update_BSD + update_of(self.behind, ffn), answer, scale)

    def _span_error(self, span: Span) -> Tensor:
        """Of what a whole layer adds to its input."""
        hidden_BSD, place = self.states[span.first], (span.first, span.end)
        update_BSD = update_of(span.layer, slot_input(span.layer, "attention", hidden_BSD, self.context))
        ffn = slot_input(span.layer, "ffn", hidden_BSD + update_BSD, self.context)
        return update_mse(update_BSD + update_of(span.layer, ffn), self.answers[place], self.scales[place])
