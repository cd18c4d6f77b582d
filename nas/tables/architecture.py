"""Architectures as values: one block a layer, by labels; how they are named, read back and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

Block = tuple[str, str]
"""The labels of an attention variant and an ffn variant."""
Blocks = tuple[Block, ...]
"""An architecture: one block a layer."""
PARENT_BLOCK: Block = ("attention:parent", "ffn:parent")


def identify(architecture: Sequence[Sequence[str]]) -> str:
    """A short name of an architecture, from its digest."""
    return hashlib.sha256(json.dumps([list(block) for block in architecture]).encode()).hexdigest()[:12]


def kind_of(label: str) -> str:
    """`attention:kv_heads` of `attention:kv_heads=2` and of `attention:kv_heads=2@q8_0`."""
    return label.partition("@")[0].partition("=")[0]


def blocks_of(value: Iterable[Iterable[str]]) -> Blocks:
    """(attention, ffn) labels layer by layer, from JSON."""
    pairs = (tuple(pair) for pair in value)
    return tuple((str(attention), str(ffn)) for attention, ffn in pairs)


def architecture_of(labels: Sequence[str]) -> Blocks:
    """The blocks of a solution's labels."""
    pairs = (label.split(" + ") for label in labels)
    return tuple((attention, ffn) for attention, ffn in pairs)
