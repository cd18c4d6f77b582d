"""Architectures as values: one block a layer, by labels; how they are named, read back and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from inlay.nas.variants.kind import parted

Block = tuple[str, ...]
"""The labels of an attention variant and an ffn variant; in the last layer others may say what embedding and head are
stored in, and then what keys and values are, where that is another format than the search's own."""
Blocks = tuple[Block, ...]
"""An architecture: one block a layer."""
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


def architecture_of(labels: Sequence[str]) -> Blocks:
    """The blocks of a solution's labels."""
    return tuple(tuple(label.split(" + ")) for label in labels)
