"""The model of training, measuring and export; importing it registers the model with Transformers' Auto classes.

The model itself is imported when one of its names is first used: registration may come while Transformers is still
being imported (registration.py).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .configuration_inlay import FAMILIES, InlayConfig, check_entry, family_config_class
from .registration import register

if TYPE_CHECKING:
    from .cache_inlay import InlayCache
    from .modeling_inlay import (
        Ends,
        ForwardContext,
        InlayForCausalLM,
        InlayLayer,
        InlayModel,
        build_layer,
        make_context,
        window_key,
    )

__all__ = [
    "FAMILIES",
    "MODELING_FILES",
    "Ends",
    "ForwardContext",
    "InlayCache",
    "InlayConfig",
    "InlayForCausalLM",
    "InlayLayer",
    "InlayModel",
    "build_layer",
    "check_entry",
    "family_config_class",
    "make_context",
    "register",
    "window_key",
]

MODELING_FILES = ("configuration_inlay.py", "cache_inlay.py", "modeling_inlay.py")
"""The files of this folder that an exported model carries beside its weights."""

_PLACES = {
    "InlayCache": "cache_inlay",
    **dict.fromkeys(("Ends", "ForwardContext", "InlayForCausalLM", "InlayLayer", "InlayModel"), "modeling_inlay"),
    **dict.fromkeys(("build_layer", "make_context", "window_key"), "modeling_inlay"),
}

register()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
