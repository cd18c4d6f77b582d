"""Architectures as values: one block a layer, by labels; how they are named, read back and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from inlay.nas.variants.kind import parted
from inlay.nas.variants.registry import KINDS
from inlay.nas.variants.variant import parse_variant

Block = tuple[str, ...]
"""The labels of an attention variant and an ffn variant; in the last layer others may say what embedding and head are
stored in, and then what keys and values are, where that is another format than the search's own."""
Blocks = tuple[Block, ...]
"""An architecture: one block a layer."""
JOIN = " + "
"""What stands between the labels of a block where it is one choice of the program."""
PARENT_BLOCK: Block = ("attention:parent", "ffn:parent")
ORIGINAL_BLOCK: Block = ("attention:original", "ffn:original")
"""What stood at a layer of the original that a parent is a child of; a cost table has it, no architecture does."""
_ENDS, _CACHE = "ends:parent@", "kv:"
OWN_CACHE = f"{_CACHE}parent"
"""What a score table calls the cache that all models of a search have where none is chosen."""


def ends_label(form: str) -> str:
    """The label of embedding and head in a format."""
    return f"{_ENDS}{form}"


def ends_form(architecture: Sequence[Sequence[str]]) -> str | None:
    """What an architecture's embedding and head are stored in; None: as the whole file."""
    return _whole_form(architecture, _ENDS)


def cache_label(form: str) -> str:
    """The label of a cache for keys and values in a format."""
    return f"{_CACHE}{form}"


def is_cache(label: str) -> bool:
    """Whether a label is that of a cache."""
    return label.startswith(_CACHE)


def cache_form(architecture: Sequence[Sequence[str]]) -> str | None:
    """What an architecture's keys and values are stored in; None: as the search's own are."""
    return _whole_form(architecture, _CACHE)


def _whole_form(architecture: Sequence[Sequence[str]], opening: str) -> str | None:
    """What a label of the whole model that opens so says, where there is one."""
    labels = architecture[-1][len(PARENT_BLOCK) :] if architecture else ()
    return next((label.removeprefix(opening) for label in labels if label.startswith(opening)), None)


def identify(architecture: Sequence[Sequence[str]]) -> str:
    """A short name of an architecture, from its digest."""
    return hashlib.sha256(json.dumps([list(block) for block in architecture]).encode()).hexdigest()[:12]


def is_original(architecture: Sequence[Sequence[str]]) -> bool:
    """Whether it is no architecture of the search, but what its parent is a child of."""
    return tuple(architecture[0][:2]) == ORIGINAL_BLOCK


def kind_of(label: str) -> str:
    """`attention:kv_heads` of `attention:kv_heads=2` and of `attention:kv_heads=2@q8_0`."""
    return parted(label.partition("@")[0])[0]


def blocks_of(value: Iterable[Iterable[str]]) -> Blocks:
    """Labels layer by layer, from JSON."""
    return tuple(tuple(str(label) for label in block) for block in value)


def choice_label(block: Block) -> str:
    """What a block, or a run of layers that begins with it, is called where it is one choice."""
    return JOIN.join(block)


def block_of(label: str) -> Block:
    """The block of a choice."""
    return tuple(label.split(JOIN))


def spread(block: Block) -> Blocks:
    """The blocks of all layers that a choice fills: one, unless it is a run of layers, which is told by its first block
    with what the last layer says of the whole model behind it, where it reaches that."""
    run = _run_of(block[0])
    if len(run) < 2:
        return (block,)
    return (*run[:-1], (*run[-1], *block[len(PARENT_BLOCK) :]))


def num_layers(block: Block) -> int:
    """How many layers a choice fills."""
    return max(1, len(_run_of(block[0])))


def choices_of(architecture: Sequence[Block]) -> Iterator[tuple[int, Block]]:
    """The choices that an architecture is made of, each with its first layer: `spread` of them gives it back."""
    layer = 0
    while layer < len(architecture):
        block = architecture[layer]
        end = layer + num_layers(block)
        whole = architecture[min(end, len(architecture)) - 1][len(PARENT_BLOCK) :]
        yield layer, (*block[: len(PARENT_BLOCK)], *whole)
        layer = end


def architecture_of(labels: Sequence[str]) -> Blocks:
    """The blocks of a solution's labels, which has that of a run at each of its layers."""
    found: list[Block] = []
    while len(found) < len(labels):
        found += spread(block_of(labels[len(found)]))
    return tuple(found)


@lru_cache(maxsize=4096)
def _run_of(label: str) -> Blocks:
    """The blocks of the layers that are one choice with an attention; none where it is a choice of its own."""
    kind = KINDS.get(kind_of(label).partition(":")[2])
    if kind is None or not kind.lists:
        return ()
    return tuple((attention.label, ffn.label) for attention, ffn in parse_variant(label).run)
