"""From labels to the config entries of a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.nas.families.shape import Shape
from inlay.nas.modeling.subblock_inlay import structure
from inlay.nas.variants.variant import parse_variant


def entries_of(shape: Shape, architecture: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The config's blocks of an architecture, each subblock's format among what they say."""
    return [
        {
            slot: parse_variant(label).entry(shape, layer)
            for slot, label in zip(("attention", "ffn"), block[:2], strict=True)
        }
        for layer, block in enumerate(architecture)
    ]


def structures_of(shape: Shape, architecture: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The config's blocks of an architecture for those who store every number alike."""
    return [{slot: structure(entry) for slot, entry in block.items()} for block in entries_of(shape, architecture)]
