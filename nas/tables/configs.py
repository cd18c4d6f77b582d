"""From an architecture to the configuration of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.nas.families.shape import Shape
from inlay.nas.tables.architecture import Blocks, cache_form, ends_form
from inlay.nas.variants.entries import entries_of

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig


def config_of(config: InlayConfig, shape: Shape, architecture: Blocks) -> InlayConfig:
    """That of an architecture of the parent whose own is given, formats among what it says."""
    return config.with_blocks(entries_of(shape, architecture), ends_form(architecture), cache_form(architecture))
