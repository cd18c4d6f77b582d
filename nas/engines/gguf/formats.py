"""How llama.cpp stores numbers: the bytes of a row, and which rows a format can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Format:
    """One number format of GGUF.

    Args:
        name: as jobs and `inlay export` have it.
        block: numbers that are stored together; a row holds whole blocks.
        block_bytes: bytes of them.
        file_type: the `general.file_type` of a file whose matrices are stored so.
    """

    name: str
    block: int
    block_bytes: int
    file_type: int

    def fits(self, row: int) -> bool:
        """Whether a row of so many numbers can be stored."""
        return row % self.block == 0

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; its last dimension is the row."""
        return prod(shape) // self.block * self.block_bytes


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        form.name: form
        for form in (
            Format("f32", 1, 4, 0),
            Format("f16", 1, 2, 1),
            Format("bf16", 1, 2, 32),
            Format("q8_0", 32, 34, 7),
        )
    }
)
"""Every format by its name; sizes and file types as in ggml's headers."""

FALLBACK: Final = "f16"
"""What holds a row that the format cannot."""
VECTORS: Final = "f32"
"""What norms and biases are stored in."""
