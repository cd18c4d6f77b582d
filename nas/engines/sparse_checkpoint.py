"""A checkpoint whose 2:4 matrices are packed, as the modules of nas/modeling/sparse_inlay.py hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from inlay.nas.families.shape import SLOTS, Shape, layer_prefix, subblock_tensors
from inlay.nas.formats.sparse import SPARSE, SparseFormat
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.variants.storage import Block

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.formats.format import Bytes, Format

_WEIGHT = ".weight"
_PACKED = ".packed"


def packed_matrices(shape: Shape, blocks: Sequence[Block]) -> dict[str, SparseFormat]:
    """By whole-model name the matrices that are packed, and in which format."""
    return {
        layer_prefix(layer) + name: SPARSE[block[slot][FORMAT]]
        for layer, block in enumerate(blocks)
        for slot in SLOTS
        if FORMAT in block[slot]
        for name, size in subblock_tensors(shape, slot, block[slot]).items()
        if len(size) == 2
    }


def stored_tensors(
    names: Iterable[str],
    read: Callable[[str], Tensor],
    formats: Mapping[str, SparseFormat],
    rows: Callable[[str, Format], Bytes],
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the checkpoint by their names, one after the other.

    Args:
        names: the model's tensors, whole-model names.
        read: one of them.
        formats: of the matrices that are packed.
        rows: a matrix' packed rows in a format.
    """
    import torch

    for name in names:
        if name in formats:
            yield name.removesuffix(_WEIGHT) + _PACKED, torch.from_numpy(rows(name, formats[name]).copy())
        else:
            yield name, read(name)
