"""Codes that training may change: the scales of a matrix stay as they were fitted, and its weights move on the grid.

Training begins as near to the matrix' own weights as they are still rounded to the fitted codes: a weight that lies
between two codes needs a small step to become the other.

R rows, C input channels, S sub-blocks of a row that have one scale, B numbers of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.nas.formats.codes import Codes
from inlay.nas.formats.format import Format, Through
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.kept import KeptRounding
from inlay.nas.formats.tensors import packed

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes

TOGETHER = 16
"""Numbers that have one scale in every format, where rows are so long."""
INSIDE = 0.49
"""Of a step of the grid: so far from its code a weight may begin."""


def through(weights_RC: Tensor, form: Format, inputs: Inputs | None, kept: KeptRounding | None) -> Through:
    """How training goes through what `packed` finds for a matrix; on its device."""
    rows = packed(weights_RC, form, inputs, kept)
    own = form.through(weights_RC, rows, inputs)
    return Grid.of(weights_RC, form, rows) if own is None else own


@dataclass(frozen=True)
class Grid:
    """The grid that a matrix is rounded to.

    Args:
        form: the format; one that has codes.
        fitted: the rows that the scales are those of, [R, bytes of a row].
        scale_RS1: of each sub-block.
        offset_RS1: the same.
    """

    form: Format
    fitted: Bytes
    scale_RS1: Tensor
    offset_RS1: Tensor

    @staticmethod
    def of(weights_RC: Tensor, form: Format, rows: Bytes) -> Grid:
        """With the scales of a matrix' rows; on its device."""
        codes, width = _codes_of(form, weights_RC), weights_RC.shape[1]
        together = gcd(TOGETHER, codes.block)
        scale, offset = (
            torch.from_numpy(part.reshape(len(rows), width // together, together)[..., :1].copy()).to(weights_RC.device)
            for part in codes.grid(rows.reshape(-1, codes.block_bytes))
        )
        return Grid(form, rows, scale, offset)

    def start(self, weights_RC: Tensor) -> Tensor:
        """The weights nearest to these that are rounded to the fitted codes; float32."""
        numbers = torch.from_numpy(self.form.unpack(self.fitted, weights_RC.shape[1]).copy()).to(weights_RC.device)
        step_RSB = _codes_of(self.form, numbers).step(self._nearest(numbers))
        reach_RC = (
            (INSIDE * self.scale_RS1.abs() * step_RSB).expand(-1, -1, self._together(numbers)).reshape(numbers.shape)
        )
        return weights_RC.detach().float().clamp(numbers - reach_RC, numbers + reach_RC)

    def __call__(self, weights_RC: Tensor) -> Tensor:
        """The numbers that the engine computes with in place of these."""
        return torch.addcmul(self.offset_RS1, self._nearest(weights_RC), self.scale_RS1).view_as(weights_RC)

    def pack(self, weights_RC: Tensor) -> Bytes:
        """The rows as they are in a file, [R, bytes of a row]."""
        codes = _codes_of(self.form, weights_RC)
        chosen = codes.stored(self._nearest(weights_RC).reshape(-1, codes.block))
        return codes.with_codes(self.fitted.reshape(-1, codes.block_bytes), chosen).reshape(self.fitted.shape)

    def _nearest(self, weights_RC: Tensor) -> Tensor:
        weights_RSB = weights_RC.detach().view(*self.scale_RS1.shape[:2], self._together(weights_RC))
        # Where a scale is nothing every code means the same number.
        inverse_RS1 = torch.where(self.scale_RS1 == 0, 0.0, 1 / self.scale_RS1)
        return _codes_of(self.form, weights_RC).nearest((weights_RSB - self.offset_RS1) * inverse_RS1)

    def _together(self, weights_RC: Tensor) -> int:
        """B."""
        return weights_RC.shape[1] // self.scale_RS1.shape[1]


def _codes_of(form: Format, weights_RC: Tensor) -> Codes:
    found = form.codes(weights_RC.shape[1])
    assert found is not None
    return found
