"""Exact sizes, in numbers and bytes, of subblocks, of their key/value caches and of a model's ends; no torch.

All of them are counted from the tensors that the kinds of subblocks tell.
"""

from collections.abc import Mapping
from math import prod

from inlay.nas.families.shape import Entry, Shape, ends_tensors, subblock_tensors
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import Slot


def parameters(entry: Entry, slot: Slot, shape: Shape) -> int:
    """Numbers in one subblock, its norm included; 0 where there is none."""
    return _count(subblock_tensors(shape, slot, entry))


def working_parameters(entry: Entry, slot: Slot, shape: Shape) -> int:
    """Numbers in one subblock that a token is computed with: all but those of experts that it does not take."""
    return _count(SUBBLOCKS.of(entry).working(entry, slot, shape))


def weights_bytes(entry: Entry, slot: Slot, shape: Shape) -> int:
    """Bytes of one subblock as it is stored, in the parent's dtype."""
    return parameters(entry, slot, shape) * shape.dtype_bytes


def ends_parameters(shape: Shape) -> int:
    """Numbers in embedding, final norm and head; a tied head is counted once, with the embedding."""
    return _count(ends_tensors(shape))


def kv_bytes(entry: Entry, shape: Shape, batch: int, length: int) -> int:
    """Bytes of what one subblock holds for `batch` sequences after `length` tokens."""
    kind = SUBBLOCKS.of(entry)
    return batch * _count(kind.state(entry, shape, length)) * (kind.state_bytes or shape.dtype_bytes)


def _count(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(size) for size in tensors.values())
