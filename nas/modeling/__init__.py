"""The model of training, measuring and export, and the kinds of subblocks that it is made of.

Nothing is imported before it is used: what the kinds say of sizes is asked where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache_inlay import InlayCache
    from .configuration_inlay import FAMILIES, InlayConfig, family_config_class
    from .context_inlay import ForwardContext
    from .kinds_inlay import SUBBLOCKS
    from .modeling_inlay import (
        Ends,
        InlayForCausalLM,
        InlayLayer,
        InlayModel,
        build_layer,
        make_context,
    )
    from .no_op_inlay import ABSENT
    from .registration import register
    from .subblock_inlay import Entry, Sizes, Slot, SubblockKind

__all__ = [
    "ABSENT",
    "FAMILIES",
    "MODELING_FILES",
    "SUBBLOCKS",
    "Ends",
    "Entry",
    "ForwardContext",
    "InlayCache",
    "InlayConfig",
    "InlayForCausalLM",
    "InlayLayer",
    "InlayModel",
    "Sizes",
    "Slot",
    "SubblockKind",
    "build_layer",
    "family_config_class",
    "make_context",
    "register",
]

MODELING_FILES = tuple(sorted(path.name for path in Path(__file__).parent.glob("*_inlay.py")))
"""The files of this folder that an exported model carries beside its weights."""

_PLACES = {
    "ABSENT": "no_op_inlay",
    "ForwardContext": "context_inlay",
    "InlayCache": "cache_inlay",
    "SUBBLOCKS": "kinds_inlay",
    "register": "registration",
    **dict.fromkeys(("FAMILIES", "InlayConfig", "family_config_class"), "configuration_inlay"),
    **dict.fromkeys(("Ends", "InlayForCausalLM", "InlayLayer", "InlayModel"), "modeling_inlay"),
    **dict.fromkeys(("build_layer", "make_context"), "modeling_inlay"),
    **dict.fromkeys(("Entry", "Sizes", "Slot", "SubblockKind"), "subblock_inlay"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
