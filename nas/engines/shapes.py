"""Configurations of models as engines read them: their shape, and the same with another vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.nas.families.shape import Shape

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig


def shape_of_model(config: InlayConfig) -> Shape:
    """Its sizes; its type is float32, which no engine stores it in."""
    from inlay.nas.families.reading import shape_of

    return shape_of(config.to_dict(), "float32")


def with_vocabulary(config: InlayConfig, size: int) -> InlayConfig:
    """The same layers between ends of so many tokens."""
    values = config.to_dict()
    for name in ("model_type", "architectures"):
        values.pop(name, None)
    return type(config)(**{**values, "vocab_size": size})
