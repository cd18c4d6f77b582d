"""Two of every four numbers of a row and which two they are: semi-structured sparsity.

Which are kept is chosen column by column, as codes are (nas/formats/fitting.py): of each four those that cost
most to leave out, once the columns behind have made up for those before (SparseGPT, arXiv 2301.00774). Then what is
kept takes over from what is not by least squares, row by row. Without what a matrix reads the largest are kept, weighed
by an importance of their channels (Wanda, arXiv 2306.11695). Training changes what is kept, and not which.
benchmarks/sparsity.py compares all of this with other ways.

Kept numbers are bfloat16, which models in bfloat16 as well as in float32 hold as they are; a bit for each number of a
row says whether it is kept, as many as two places of two bits. nas/modeling/sparse_inlay.py reads the same rows.

R rows, C input channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from inlay.nas.formats.format import Format
from inlay.nas.formats.gguf import F32, GGUF
from inlay.nas.modeling.subblock_inlay import TWO_OF_FOUR

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.formats.format import Bytes, Numbers
    from inlay.nas.formats.inputs import Inputs

GROUP: Final = 4
KEPT: Final = 2
"""Of a group."""
VALUE_BYTES: Final = 2
STEPS: Final = 10
"""Of conjugate gradients, for what is kept: the KL of small models was within 0.3 % of that after a hundred."""


@dataclass(frozen=True)
class SparseFormat(Format):
    """Two of four."""

    def holding(self, row: int) -> Format:
        """float32 stands for rows that are no whole groups, which are left as they are."""
        return self if self.fits(row) else GGUF[F32]

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Values, and the bits of each row in whole bytes."""
        row = shape[-1]
        return prod(shape[:-1]) * (_value_bytes(row) + -(-row // 8))

    @property
    def can_fit(self) -> bool:
        return True

    def fitted(self, weights_RC: Tensor, inputs: Inputs) -> Bytes | None:
        """In turn, and what is kept refitted."""
        kept_RC = kept_in_turn(weights_RC, inputs.factor_CC)
        return self.stored(refitted(weights_RC, kept_RC, inputs.damped_CC), kept_RC)

    def through(self, weights_RC: Tensor, rows: Bytes, inputs: Inputs | None) -> Masked:
        """By the fitted mask."""
        return Masked(self, rows, self.mask(rows, weights_RC.shape[1]).to(weights_RC.device))

    def _packed(self, numbers: Numbers, importance: Numbers | None) -> Bytes:
        import torch

        own = torch.from_numpy(numbers)
        counts = torch.ones(1) if importance is None else torch.from_numpy(importance)
        return self.stored(own, kept(own.square() * counts))

    def stored(self, numbers: Tensor, is_kept: Tensor) -> Bytes:
        """The bytes of rows of which these numbers are kept, [..., row] each."""
        import numpy as np
        import torch

        row = numbers.shape[-1] // GROUP * KEPT
        values = numbers[is_kept].bfloat16().view(*numbers.shape[:-1], row).view(torch.uint8).cpu().numpy()
        bits = np.packbits(is_kept.cpu().numpy(), axis=-1, bitorder="little")
        return np.concatenate([values, bits], axis=-1)

    def mask(self, packed: Bytes, row: int) -> Tensor:
        """Which numbers packed rows keep, [..., row], bool."""
        import numpy as np
        import torch

        bits = np.unpackbits(packed[..., _value_bytes(row) :], axis=-1, count=row, bitorder="little")
        return torch.from_numpy(bits.astype(bool))

    def unpack(self, packed: Bytes, row: int) -> Numbers:
        """Zero where nothing is kept."""
        import numpy as np

        is_kept = self.mask(packed, row).numpy()
        upper = np.ascontiguousarray(packed[..., : _value_bytes(row)]).view(np.uint16).astype(np.uint32) << 16
        numbers = np.zeros(is_kept.shape, np.float32)
        numbers[is_kept] = upper.view(np.float32).ravel()
        return numbers


@dataclass(frozen=True)
class Masked:
    """A matrix in training: what is kept moves, and what is not stays away.

    Args:
        form: the format.
        fitted: the rows that training begins with, [R, bytes of a row].
        kept_RC: which numbers they keep.
    """

    form: SparseFormat
    fitted: Bytes
    kept_RC: Tensor

    def start(self, weights_RC: Tensor) -> Tensor:
        """What is kept as it was fitted, and the others' own, which nothing is computed with."""
        import torch

        fitted_RC = torch.from_numpy(self.form.unpack(self.fitted, weights_RC.shape[1])).to(weights_RC.device)
        return torch.where(self.kept_RC, fitted_RC, weights_RC.detach().float())

    def __call__(self, weights_RC: Tensor) -> Tensor:
        """In bfloat16 as they are stored, zero where nothing is kept."""
        return weights_RC.detach().bfloat16().float() * self.kept_RC

    def pack(self, weights_RC: Tensor) -> Bytes:
        """With the same mask."""
        return self.form.stored(weights_RC.detach(), self.kept_RC)


def kept(score: Tensor) -> Tensor:
    """Which two of each four have the largest scores; of equal ones the first. [..., row] -> the same, bool."""
    import torch

    groups = score.view(*score.shape[:-1], score.shape[-1] // GROUP, GROUP)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :KEPT]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).flatten(-2)


def kept_in_turn(weights_RC: Tensor, factor_CC: Tensor) -> Tensor:
    """Of each group those that cost the most to leave out, once those behind have made up for the groups before.

    Args:
        weights_RC: float32.
        factor_CC: `Inputs.factor_CC`.
    """
    import torch

    left_RC, found_RC = weights_RC.clone(), torch.zeros_like(weights_RC, dtype=torch.bool)
    for start in range(0, left_RC.shape[1], GROUP):
        group = slice(start, start + GROUP)
        found_RC[:, group] = kept((left_RC[:, group] / factor_CC.diagonal()[group]).square())
        error_RG = torch.zeros(len(left_RC), GROUP)
        for place, column in enumerate(range(start, start + GROUP)):
            own_R = left_RC[:, column] - error_RG[:, :place] @ factor_CC[start:column, column]
            error_RG[:, place] = own_R * ~found_RC[:, column] / factor_CC[column, column]
        left_RC[:, group.stop :] -= error_RG @ factor_CC[group, group.stop :]
    return found_RC


def refitted(weights_RC: Tensor, kept_RC: Tensor, gram_CC: Tensor) -> Tensor:
    """The weights nearest in their outputs to those of a matrix, nothing but these kept.

    Each row's least squares by conjugate gradients, begun with its own numbers and scaled by the diagonal.

    Args:
        weights_RC: float32.
        kept_RC: bool.
        gram_CC: of the inputs, with something on its diagonal.
    """
    import torch

    inverse_C = 1 / gram_CC.diagonal()
    found_RC = weights_RC * kept_RC
    left_RC = ((weights_RC - found_RC) @ gram_CC) * kept_RC
    scaled_RC = left_RC * inverse_C
    way_RC, size_R1 = scaled_RC, (left_RC * scaled_RC).sum(1, keepdim=True)
    for _ in range(STEPS):
        ahead_RC = (way_RC @ gram_CC) * kept_RC
        against_R1 = (way_RC * ahead_RC).sum(1, keepdim=True)
        length_R1 = torch.where(against_R1 > 0, size_R1 / against_R1, 0.0)
        found_RC = found_RC + length_R1 * way_RC
        left_RC = left_RC - length_R1 * ahead_RC
        scaled_RC, before_R1 = left_RC * inverse_C, size_R1
        size_R1 = (left_RC * scaled_RC).sum(1, keepdim=True)
        way_RC = scaled_RC + torch.where(before_R1 > 0, size_R1 / before_R1, 0.0) * way_RC
    return found_RC


def _value_bytes(row: int) -> int:
    return row * KEPT // GROUP * VALUE_BYTES


SPARSE: Final[Mapping[str, SparseFormat]] = MappingProxyType({TWO_OF_FOUR: SparseFormat(TWO_OF_FOUR, GROUP, 5)})
"""Every format by its name."""
