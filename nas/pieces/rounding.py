"""A child whose subblocks have formats is trained through its rounding: the grids of its matrices, and what is stored.

What is stored of a matrix is the very rows that were trained; nothing is fitted again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from inlay.distill.adapters import Merged
from inlay.distill.parallel import is_sharded, local
from inlay.distill.tensor_files import Rows
from inlay.nas.families import Shape, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.formats import FORMATS, Format
from inlay.nas.formats.by_tensor import form_of
from inlay.nas.formats.format import Through
from inlay.nas.formats.through import through
from inlay.nas.pieces.weights import WorkerSource
from inlay.nas.tables.architecture import Blocks, ends_form
from inlay.nas.variants import parse_variant

Grids = dict[str, Through]
"""By whole-model names; matrices in 16 bits have none, and are rounded when they are read."""
MODEL, PACKED = "model", "packed"
"""Blobs of what was trained: its numbers, and the rows of the matrices that were rounded while it was."""


@torch.no_grad()
def begin_rounded(source: WorkerSource, architecture: Blocks, model: nn.Module) -> Grids:
    """The grids of an assembled model's matrices, which are left as training through them begins.

    Of a model that is sharded, each rank has those of its rows.
    """
    told = source.matrix_inputs.where_own(source.parent.shape, architecture)
    grids = {}
    for name, row, form in _matrices(source.parent.shape, architecture):
        if (held := form.holding(row)).can_fit:
            own = local(model.get_parameter(name))
            grids[name] = through(own, held, told.get(name, row), source.kept)
            own.copy_(grids[name].start(own))
    return grids


def trained_rows(state: Merged, grids: Grids, dtype: torch.dtype) -> dict[str, dict[str, Rows]]:
    """What is stored of a trained model, from the weights behind its rounding: `MODEL`, and `PACKED` where any are.

    Of a model that is sharded, each rank has its own rows.
    """

    def numbers(name: str) -> Tensor:
        tensor = state[name]
        return (grids[name](tensor) if name in grids else tensor).to(dtype)

    def codes(name: str) -> Tensor:
        return torch.from_numpy(grids[name].pack(state[name])).to(state[name].device)

    found = {MODEL: {}, PACKED: {}}  # type: dict[str, dict[str, Rows]]
    for name in state:
        under = state.under(name)
        shape, shared = tuple(under.shape), is_sharded(under)
        found[MODEL][name] = Rows(shape, dtype, partial(numbers, name), shared)
        if name in grids:
            row_bytes = grids[name].fitted.shape[1]
            found[PACKED][name] = Rows((shape[0], row_bytes), torch.uint8, partial(codes, name), shared)
    return {blob: rows for blob, rows in found.items() if rows}


def numbers_of(rows: Tensor, form: str, row: int) -> Tensor:
    """The numbers of a matrix that is stored as rows in what holds `row` numbers in a format; float32."""
    return torch.from_numpy(FORMATS[form].holding(row).unpack(rows.numpy(), row).copy())


def _matrices(shape: Shape, architecture: Blocks) -> Iterator[tuple[str, int, Format]]:
    """The matrices of subblocks, and of the ends, that have a format: names, lengths of rows, formats."""
    for layer, block in enumerate(architecture):
        for variant in map(parse_variant, block[:2]):
            if variant.form is not None:
                own = subblock_tensors(shape, variant.slot, variant.entry(shape, layer))
                for name, size in own.items():
                    if len(size) == 2:
                        yield layer_prefix(layer) + name, size[1], FORMATS[form_of(variant.form, name)]
    if (form := ends_form(architecture)) is not None:
        for name, size in ends_tensors(shape).items():
            if len(size) == 2:
                yield name, size[1], FORMATS[form]
