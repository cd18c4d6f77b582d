"""How subblocks share the layers of an engine whose layers are an attention and an ffn, and where something stands in.

A layer takes the next attention or linear map, then the next ffn; what is missing of it is stood in for by something
that adds nothing, but takes bytes and time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Literal, TypeVar

Part = TypeVar("Part")
Half = Literal["attention", "map", "ffn"]
"""What a subblock becomes: a map takes the place of an attention and has no cache."""


class StandIn(StrEnum):
    """What stands where a layer lacks a half."""

    MAP = "map"
    """A map to nothing, where an engine wants heads in its first layer alone."""
    ATTENTION = "attention"
    """One head, where it wants attention in every layer, or a cache somewhere."""
    FFN = "ffn"
    """One channel."""


def layers_of(
    parts: Sequence[Part], half: Callable[[Part], Half], maps: bool
) -> list[tuple[Part | StandIn | None, Part | StandIn]]:
    """The layers of a whole model: its subblocks in pairs, with what stands in; an attention may be None.

    Args:
        parts: subblocks that are there, in their order.
        half: what each of them becomes.
        maps: whether a layer may lack its attention, the first excepted, which takes a map to nothing.
    """
    pairs: list[tuple[Part | StandIn | None, Part | None]] = [*_paired(parts, half)]
    if not any(half(part) == "attention" for part in parts):
        pairs.insert(0, (StandIn.ATTENTION, None))  # a cache is wanted somewhere
    layers: list[tuple[Part | StandIn | None, Part | StandIn]] = []
    for number, (attention, ffn) in enumerate(pairs):
        if attention is None and not (maps and number > 0):
            attention = StandIn.MAP if maps else StandIn.ATTENTION
        layers.append((attention, StandIn.FFN if ffn is None else ffn))
    return layers


def stand_ins_at_most(parts: Sequence[Part], half: Callable[[Part], Half], maps: bool, is_first: bool) -> list[StandIn]:
    """What at most stands in for one block's part of a model, whatever the others are; arguments as `layers_of`."""
    pairs = _paired(parts, half)
    found = [StandIn.FFN for _, ffn in pairs if ffn is None and parts]
    lacking = [number for number, (attention, _) in enumerate(pairs) if attention is None]
    if maps:
        return [*found, StandIn.MAP] if is_first and 0 in lacking else found
    return [*found, *[StandIn.ATTENTION] * len(lacking)] if parts else found


def _paired(parts: Sequence[Part], half: Callable[[Part], Half]) -> list[tuple[Part | None, Part | None]]:
    pairs: list[tuple[Part | None, Part | None]] = []
    waiting: Part | None = None
    for part in parts:
        if half(part) == "ffn":
            pairs.append((waiting, part))
            waiting = None
        else:
            if waiting is not None:
                pairs.append((waiting, None))
            waiting = part
    if waiting is not None or not pairs:
        pairs.append((waiting, None))
    return pairs
