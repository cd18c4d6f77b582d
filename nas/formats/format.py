"""The contract of a number format: which tensors it holds, in how many bytes, and what becomes of their numbers.

Sizes are asked where neither torch nor numpy is; both are imported by what needs them. Numbers are float32 arrays whose
last dimension is a row: the input channels of a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

from inlay.nas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.formats.codes import Bytes, Codes, Numbers
    from inlay.nas.formats.inputs import Inputs

__all__ = ["Bytes", "Format", "Numbers", "Through"]


class Through(Protocol):
    """What a matrix is computed with while it is trained, and what is stored of it."""

    @property
    def fitted(self) -> Bytes:
        """The rows that training begins with, [R, bytes of a row]."""

    def start(self, weights_RC: Tensor) -> Tensor:
        """The weights nearest to these that are stored as the fitted rows; float32."""

    def __call__(self, weights_RC: Tensor) -> Tensor:
        """The numbers that the engine computes with in place of these."""

    def pack(self, weights_RC: Tensor) -> Bytes:
        """The rows as they are in a file, [R, bytes of a row]."""


@dataclass(frozen=True)
class Format(ABC):
    """One number format.

    Args:
        name: as jobs, labels and `inlay export` have it.
        block: numbers of a row that are stored together; a row holds whole blocks.
        block_bytes: bytes of them.
    """

    name: str
    block: int
    block_bytes: int

    def fits(self, row: int) -> bool:
        """Whether a row of so many numbers can be stored."""
        return row % self.block == 0

    def holding(self, row: int) -> Format:
        """What an engine stores rows of so many numbers in where it is asked for this format: itself if they fit."""
        return self

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; its last dimension is the row."""
        return prod(shape) // self.block * self.block_bytes

    def codes(self, row: int) -> Codes | None:
        """What a row of so many numbers is made of; None where every number is rounded by itself."""
        return None

    @property
    def can_fit(self) -> bool:
        """Whether what is stored of a number may depend on the others: not where each is rounded by itself."""
        return self.codes(self.block) is not None

    def fitted(self, weights_RC: Tensor, inputs: Inputs) -> Bytes | None:
        """What `fitting.fitted` gives, by a way of the format's own; None: by its codes."""
        return None

    def through(self, weights_RC: Tensor, rows: Bytes, inputs: Inputs | None) -> Through | None:
        """What `through.through` gives for a matrix with these rows, by a way of its own; None: by its codes."""
        return None

    def pack(self, numbers: Numbers, importance: Numbers | None = None) -> Bytes:
        """A tensor's bytes as they are in a file, rows first.

        Args:
            numbers: [..., row].
            importance: [row]: how much an error in each input channel counts, such as the mean of the channel's square.
                None: as the format rounds without.

        Raises:
            UserError: numbers that are not finite, an importance that is not, or is below zero.
            ValueError: a row that does not fit, or an importance of another length.
        """
        import numpy as np

        row = numbers.shape[-1]
        if not self.fits(row):
            raise ValueError(f"{self.name} stores {self.block} numbers together, and a row has {row}")
        if not np.isfinite(numbers).all():
            raise UserError(f"{self.name} cannot store weights that are not finite; the model they are of is broken")
        if importance is not None:
            if importance.shape != (row,):
                raise ValueError(f"importance has the shape {importance.shape}, and the rows have {row} numbers")
            if not (np.isfinite(importance).all() and (importance >= 0).all()):
                raise UserError(f"{self.name}: an importance is not finite or below zero; gather the statistics anew")
        return self._packed(np.ascontiguousarray(numbers, np.float32), importance)

    @abstractmethod
    def _packed(self, numbers: Numbers, importance: Numbers | None) -> Bytes:
        """`pack` of numbers that were checked."""

    @abstractmethod
    def unpack(self, packed: Bytes, row: int) -> Numbers:
        """The numbers that the engine computes with.

        Args:
            packed: what `pack` gave, [..., bytes of a row].
            row: numbers of a row.
        """

    def rounded(self, numbers: Numbers, importance: Numbers | None = None) -> Numbers:
        """The numbers that the engine will compute with in place of these; arguments and errors as `pack`."""
        return self.unpack(self.pack(numbers, importance), numbers.shape[-1])
