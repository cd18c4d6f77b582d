"""`window`: attention that sees the last `window` tokens, itself included, and the first `sinks`.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .context_inlay import WindowKey
from .full_inlay import FullAttention
from .subblock_inlay import Entry, Sizes, Tensors

if TYPE_CHECKING:
    from transformers.cache_utils import CacheLayerMixin


class WindowAttention(FullAttention):
    """The same modules as full attention, behind another mask and another cache."""

    name = "window"
    fields: ClassVar[Mapping[str, int]] = {"kv_heads": 1, "window": 1, "sinks": 0}

    def state(self, entry: Entry, sizes: Sizes, tokens: int) -> Tensors:
        """Keys and values of at most window + sinks tokens."""
        return super().state(entry, sizes, min(tokens, int(entry["window"]) + int(entry["sinks"])))

    def masks(self, entry: Entry) -> tuple[WindowKey | None, ...]:
        """Its own."""
        return ((entry["window"], entry["sinks"]),)

    def cache_layer(self, entry: Entry) -> CacheLayerMixin:
        """One that drops what has left the window."""
        from .cache_inlay import WindowLayer

        return WindowLayer(entry["window"], entry["sinks"])


def parent_attention(kv_heads: int, window: int | None) -> dict[str, Any]:
    """The entry of a parent's own attention, full or sliding."""
    if window is None:
        return {"kind": FullAttention.name, "kv_heads": kv_heads}
    return {"kind": WindowAttention.name, "kv_heads": kv_heads, "window": window, "sinks": 0}
