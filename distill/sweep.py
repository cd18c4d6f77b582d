"""The sweep: hidden states through the layers of many architectures at once, each shared prefix computed once.

Architectures that agree up to a layer share one hidden state up to there; they fork where their choices differ. So
the score of one replaced block never recomputes the layers before its fork, and a pool of children pays once for what
its members have in common. Only one subblock is held at a time: memory does not grow with depth.

Shapes: N sequences, S positions, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Slot = Literal["attention", "ffn"]
SLOTS: tuple[Slot, Slot] = ("attention", "ffn")


class SubblockSource(Protocol):
    """Where the sweep gets subblocks; `layer` objects offer `attention_update` and `ffn_update` (nas/modeling)."""

    @property
    def num_layers(self) -> int:
        """Layers of every architecture."""

    def subblock(self, index: int, slot: Slot, choice: str) -> Any | None:
        """The module of a choice at one layer, frozen; None for a no-op."""

    def context(self, batch: int, sequence: int) -> Any:
        """What attention needs beside the hidden states: positions and masks."""


@dataclass
class _Group:
    """Architectures that are still one: the same choices so far, hence one hidden state [N, S, D]."""

    hidden: Tensor
    members: list[int]


Architectures = Sequence[Sequence[Sequence[str]]]


@torch.inference_mode()
def sweep(
    source: SubblockSource, architectures: Architectures, hidden_NSD: Tensor, first_layer: int, micro_batch: int
) -> list[Tensor]:
    """Runs every architecture from one boundary to the end of the layers.

    Args:
        source: subblocks by layer, slot and choice.
        architectures: per architecture one (attention, ffn) pair of choices for each layer of the model.
        hidden_NSD: the boundary before `first_layer`; all architectures must agree before it.
        first_layer: the layer that reads `hidden_NSD`.
        micro_batch: sequences computed at a time.

    Returns:
        One [N, S, D] output of the last layer per architecture, before the final norm; equal architectures share it.
    """
    groups = [_Group(hidden_NSD, list(range(len(architectures))))]
    for index in range(first_layer, source.num_layers):
        for position, slot in enumerate(SLOTS):
            groups = _advance(source, index, slot, groups, [a[index][position] for a in architectures], micro_batch)
    outputs: list[Tensor] = [hidden_NSD] * len(architectures)
    for group in groups:
        for member in group.members:
            outputs[member] = group.hidden
    return outputs


def add_update(module: Any, slot: Slot, source: SubblockSource, hidden_NSD: Tensor, micro_batch: int) -> Tensor:
    """hidden + the module's update, `micro_batch` sequences at a time, in new memory; [N, S, D]."""
    output = torch.empty_like(hidden_NSD)
    for start, end in micro_batches(len(hidden_NSD), micro_batch):
        part = hidden_NSD[start:end]
        if slot == "attention":
            update = module.attention_update(part, source.context(end - start, part.shape[1]))
        else:
            update = module.ffn_update(part)
        torch.add(part, update, out=output[start:end])
    return output


def micro_batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive runs of at most `size`."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _advance(
    source: SubblockSource, index: int, slot: Slot, groups: list[_Group], choices: list[str], micro_batch: int
) -> list[_Group]:
    """One slot of one layer for all groups; each module is loaded once, however many groups use it.

    The groups given are used up: each one's state is let go of as soon as all that follow from it are there.
    """
    by_choice: dict[str, list[tuple[_Group, list[int]]]] = {}
    for group in groups:
        split: dict[str, list[int]] = {}
        for member in group.members:
            split.setdefault(choices[member], []).append(member)
        for choice, members in split.items():
            by_choice.setdefault(choice, []).append((group, members))
    groups.clear()
    forked: list[_Group] = []
    for choice in sorted(by_choice):
        module = source.subblock(index, slot, choice)
        waiting = by_choice.pop(choice)[::-1]
        while waiting:
            group, members = waiting.pop()
            hidden = group.hidden
            if module is not None:
                hidden = add_update(module, slot, source, hidden, micro_batch)
            forked.append(_Group(hidden, members))
    return forked
