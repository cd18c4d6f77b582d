"""What is inside a block of numbers: a code for each, and the scale and offset that make it a number.

A number is `scale * code + offset`; codes are whole numbers between two bounds unless their class says otherwise. Which
code a number gets may be chosen freely once the scales are known, which is what rounding by least squares does
(nas/formats/fitting.py). The layouts here are those of ggml's block structures (ggml-common.h, MIT); tests hold them
against its own unpacking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Numbers = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Codes(ABC):
    """The codes of one type.

    Args:
        block: numbers of a block.
        block_bytes: its bytes.
        least: the smallest code.
        most: the largest.
    """

    block: int
    block_bytes: int
    least: int
    most: int

    @abstractmethod
    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        """Scale and offset of every number.

        Args:
            packed: [N, block_bytes].

        Returns:
            [N, block] each, float32.
        """

    @abstractmethod
    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        """The same blocks with other codes: [N, block], as `stored` gives them."""

    def nearest(self, scaled: Tensor) -> Tensor:
        """The codes nearest to numbers that were divided by their scales; float32, in place of them."""
        return scaled.round_().clamp_(self.least, self.most)

    def step(self, codes: Tensor) -> Tensor | float:
        """How far the next other code is from each, at least."""
        return 1.0

    def stored(self, codes: Tensor) -> Bytes:
        """The byte of each code: `code - least`."""
        import torch

        found: Bytes = (codes - self.least).to(torch.uint8).cpu().contiguous().numpy()
        return found


@dataclass(frozen=True)
class _Plain(Codes):
    """Codes of 4, 5 or 8 bits behind one scale, and a minimum where `has_minimum`."""

    has_minimum: bool = False

    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        import numpy as np

        scale = np.repeat(_half(packed, 0), self.block, axis=1)
        offset = np.repeat(_half(packed, 2), self.block, axis=1) if self.has_minimum else np.zeros_like(scale)
        return scale, offset

    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        import numpy as np

        found, start = packed.copy(), 4 if self.has_minimum else 2
        if self.most - self.least > 31:
            found[:, start:] = (codes.astype(np.int16) + self.least).astype(np.int8).view(np.uint8)
            return found
        if self.most - self.least == 31:
            # The fifth bits of all 32, the first number's lowest.
            found[:, start : start + 4] = np.packbits(codes >> 4, axis=1, bitorder="little")
            start += 4
        found[:, start:] = (codes[:, :16] & 15) | ((codes[:, 16:] & 15) << 4)
        return found


@dataclass(frozen=True)
class _Minima(Codes):
    """q4_K and q5_K: eight sub-blocks of 32 with scales and minima of 6 bits each, behind two float16."""

    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        import numpy as np

        six = packed[:, 4:16]
        scale = np.concatenate([six[:, :4] & 63, (six[:, 8:] & 15) | ((six[:, :4] >> 6) << 4)], axis=1)
        minimum = np.concatenate([six[:, 4:8] & 63, (six[:, 8:] >> 4) | ((six[:, 4:8] >> 6) << 4)], axis=1)
        scales = _half(packed, 0) * scale.astype(np.float32)
        minima = _half(packed, 2) * minimum.astype(np.float32)
        return np.repeat(scales, 32, axis=1), -np.repeat(minima, 32, axis=1)

    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        import numpy as np

        found, parts = packed.copy(), codes.reshape(len(codes), 8, 32)
        if self.most > 15:
            fifth = np.zeros((len(codes), 32), np.uint8)
            for part in range(8):
                fifth |= (parts[:, part] >> 4) << part
            found[:, 16:48] = fifth
        found[:, -128:] = ((parts[:, ::2] & 15) | ((parts[:, 1::2] & 15) << 4)).reshape(len(codes), 128)
        return found


@dataclass(frozen=True)
class _Q6K(Codes):
    """Sixteen sub-blocks of 16 with scales of 8 bits; four low bits and two high ones apart."""

    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        import numpy as np

        scales = _half(packed, 208) * packed[:, 192:208].view(np.int8).astype(np.float32)
        scale = np.repeat(scales, 16, axis=1)
        return scale, np.zeros_like(scale)

    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        import numpy as np

        found = packed.copy()
        parts = codes.reshape(len(codes), 2, 4, 32)
        low, high = parts & 15, (parts >> 4).astype(np.uint8)
        found[:, :128].reshape(-1, 2, 2, 32)[:] = low[:, :, :2] | (low[:, :, 2:] << 4)
        found[:, 128:192] = _four_by_two(high.reshape(len(codes), 256))
        return found


@dataclass(frozen=True)
class _Q3K(Codes):
    """Sixteen sub-blocks of 16 with scales of 6 bits; two low bits, and a high one that is four."""

    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        import numpy as np

        six = packed[:, 96:108]
        low = np.concatenate([six[:, :8] & 15, six[:, :8] >> 4], axis=1)
        high = np.concatenate([(six[:, 8:] >> (2 * part)) & 3 for part in range(4)], axis=1)
        scales = _half(packed, 108) * ((low | (high << 4)).astype(np.float32) - 32)
        scale = np.repeat(scales, 16, axis=1)
        return scale, np.zeros_like(scale)

    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        import numpy as np

        found, parts = packed.copy(), codes.reshape(len(codes), 8, 32)
        high = np.zeros((len(codes), 32), np.uint8)
        for part in range(8):
            high |= (parts[:, part] >> 2) << part
        found[:, :32] = high
        found[:, 32:96] = _four_by_two(codes)
        return found


@dataclass(frozen=True)
class _Q2K(Codes):
    """Sixteen sub-blocks of 16 with scales and minima of 4 bits; codes of two."""

    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        import numpy as np

        both = packed[:, :16]
        scales = _half(packed, 80) * (both & 15).astype(np.float32)
        minima = _half(packed, 82) * (both >> 4).astype(np.float32)
        return np.repeat(scales, 16, axis=1), -np.repeat(minima, 16, axis=1)

    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        found = packed.copy()
        found[:, 16:80] = _four_by_two(codes)
        return found


def _half(packed: Bytes, start: int) -> Numbers:
    """The float16 that lies so many bytes into each block, [N, 1]."""
    import numpy as np

    found: Numbers = packed[:, start : start + 2].copy().view(np.float16).astype(np.float32)
    return found


def _four_by_two(codes: Bytes) -> Bytes:
    """The two low bits of 256 codes in 64 bytes: in each half four runs of 32 share their bytes."""
    import numpy as np

    parts = codes.reshape(len(codes), 2, 4, 32) & 3
    joined = parts[:, :, 0] | (parts[:, :, 1] << 2) | (parts[:, :, 2] << 4) | (parts[:, :, 3] << 6)
    return joined.reshape(len(codes), 64).astype(np.uint8)


CODES: Final[Mapping[str, Codes]] = MappingProxyType(
    {
        "q8_0": _Plain(32, 34, -127, 127),
        "q5_1": _Plain(32, 24, 0, 31, has_minimum=True),
        "q5_0": _Plain(32, 22, -16, 15),
        "q4_1": _Plain(32, 20, 0, 15, has_minimum=True),
        "q4_0": _Plain(32, 18, -8, 7),
        "q6_K": _Q6K(256, 210, -32, 31),
        "q5_K": _Minima(256, 176, 0, 31),
        "q4_K": _Minima(256, 144, 0, 15),
        "q3_K": _Q3K(256, 110, -4, 3),
        "q2_K": _Q2K(256, 84, 0, 3),
    }
)
"""By the names of `GGUF`."""
