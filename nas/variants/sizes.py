"""Exact sizes, in numbers and bytes, of subblocks, of their key/value caches and of a model's ends; no torch."""

from collections.abc import Mapping
from math import prod

from inlay.nas.families.shape import Entry, Shape, Slot, ends_tensors, subblock_tensors


def parameters(entry: Entry, slot: Slot, shape: Shape) -> int:
    """Numbers in one subblock, its norm included; 0 for a no-op."""
    return _count(subblock_tensors(shape, slot, entry))


def weights_bytes(entry: Entry, slot: Slot, shape: Shape) -> int:
    """Bytes of one subblock as it is stored, in the parent's dtype."""
    return parameters(entry, slot, shape) * shape.dtype_bytes


def ends_parameters(shape: Shape) -> int:
    """Numbers in embedding, final norm and head; a tied head is counted once, with the embedding."""
    return _count(ends_tensors(shape))


def kv_bytes(entry: Entry, shape: Shape, batch: int, length: int) -> int:
    """Bytes of the keys and values that one attention holds for `batch` sequences after `length` tokens.

    A window holds min(length, window + sinks) tokens.
    """
    match entry["kind"]:
        case "full":
            tokens = length
        case "window":
            tokens = min(length, entry["window"] + entry["sinks"])
        case _:
            return 0
    return 2 * batch * int(entry["kv_heads"]) * shape.head_dim * tokens * shape.dtype_bytes


def _count(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(size) for size in tensors.values())
