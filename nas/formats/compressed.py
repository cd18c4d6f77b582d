"""Formats of `compressed-tensors` checkpoints: codes of 8 or 4 bits under one scale for a row, or for a group of a row.

Only weights are stored so: what is multiplied with them stays as it is, so that what is scored is what is computed. A
scale is a bfloat16, which is what such checkpoints and their kernels have beside most models. Layouts are those of the
package compressed-tensors; tests let it unpack ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.errors import UserError
from inlay.nas.formats.codes import Codes
from inlay.nas.formats.format import Format
from inlay.nas.formats.gguf import F32, GGUF

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from inlay.nas.formats.format import Bytes, Numbers

SCALE_BYTES: Final = 2
WORD: Final = 4
"""Codes of 8 bits are read four at a time, so that rows are of whole words."""
SHRUNK: Final = tuple(1.06 - 0.03 * step for step in range(14))
"""Scales that are tried for codes of 4 bits, in parts of the one that just holds the largest number: a smaller one cuts
that off, and all others are nearer."""


@dataclass(frozen=True)
class _Scaled(Codes):
    """Numbers with one scale, which stands before their codes, and no offset.

    Args:
        bits: of a code.
    """

    bits: int

    @property
    def span(self) -> float:
        """How many scales the largest number is: half of all codes."""
        return self.most + 0.5

    @property
    def tried(self) -> tuple[float, ...]:
        """Parts of the scale that just holds the largest number which are tried for the nearest codes."""
        return SHRUNK if self.bits == 4 else (1.0,)

    def grid(self, packed: Bytes) -> tuple[Numbers, Numbers]:
        import numpy as np

        scale = np.repeat(scales_of(packed), self.block, axis=1)
        return scale, np.zeros_like(scale)

    def with_codes(self, packed: Bytes, codes: Bytes) -> Bytes:
        found = packed.copy()
        found[:, SCALE_BYTES:] = codes if self.bits == 8 else codes[:, ::2] | (codes[:, 1::2] << 4)
        return found

    def codes_of(self, packed: Bytes) -> Numbers:
        """The codes themselves, [N, block]."""
        import numpy as np

        own = packed[:, SCALE_BYTES:]
        if self.bits == 4:
            own = np.stack([own & 15, own >> 4], axis=2).reshape(len(own), self.block)
        return own.astype(np.float32) + self.least


@dataclass(frozen=True)
class _Float8(_Scaled):
    """Codes that are themselves numbers with an exponent: float8_e4m3fn, between -448 and 448."""

    @property
    def span(self) -> float:
        return self.most

    def nearest(self, scaled: Tensor) -> Tensor:
        import torch

        return scaled.copy_(scaled.clamp_(self.least, self.most).to(torch.float8_e4m3fn))

    def step(self, codes: Tensor) -> Tensor:
        """Three bits behind the first; a power of two has the number below it at half of that."""
        import torch

        fraction, exponent = torch.frexp(codes)
        return torch.ldexp(torch.ones_like(codes), (exponent - 4 - (fraction.abs() == 0.5).int()).clamp(min=-9))

    def stored(self, codes: Tensor) -> Bytes:
        import torch

        found: Bytes = codes.to(torch.float8_e4m3fn).cpu().contiguous().view(torch.uint8).numpy()
        return found

    def codes_of(self, packed: Bytes) -> Numbers:
        import torch

        own = torch.from_numpy(packed[:, SCALE_BYTES:].copy()).view(torch.float8_e4m3fn)
        found: Numbers = own.float().numpy()
        return found


@dataclass(frozen=True)
class CompressedFormat(Format):
    """One scheme of weights.

    Args:
        bits: of a code.
        group: numbers of a row that have one scale; None: the whole row has one.
        is_float: whether codes are float8_e4m3fn, and not whole numbers.
        substitute: what fits where this does not.
    """

    bits: int
    group: int | None
    is_float: bool
    substitute: str

    def holding(self, row: int) -> Format:
        """By substitutes until one fits; float32 stands for numbers that are left as they are."""
        found: Format = self
        while not found.fits(row):
            assert isinstance(found, CompressedFormat)
            found = COMPRESSED.get(found.substitute) or GGUF[found.substitute]
        return found

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Codes, and the scales as bfloat16."""
        return prod(shape) * self.bits // 8 + SCALE_BYTES * self.num_scales(shape)

    def num_scales(self, shape: tuple[int, ...]) -> int:
        """Scales of a tensor."""
        return prod(shape) // (self.group or shape[-1])

    def codes(self, row: int) -> _Scaled:
        """Those of a group, or of the whole row."""
        block = self.group or row
        size = SCALE_BYTES + block * self.bits // 8
        if self.is_float:
            return _Float8(block, size, -448, 448, self.bits)
        return _Scaled(block, size, -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1, self.bits)

    def _packed(self, numbers: Numbers, importance: Numbers | None) -> Bytes:
        import numpy as np
        import torch

        row = numbers.shape[-1]
        codes = self.codes(row)
        own_NGB = torch.from_numpy(numbers).reshape(-1, row // codes.block, codes.block)
        counts_GB = torch.ones(1) if importance is None else torch.from_numpy(importance).view(-1, codes.block)
        most_NG1 = own_NGB.abs().amax(2, keepdim=True)
        best_NG1 = torch.full_like(most_NG1, torch.inf)
        scale_NG1, chosen_NGB = torch.zeros_like(most_NG1), torch.zeros_like(own_NGB)
        for part in codes.tried:
            tried_NG1 = (most_NG1 * (part / codes.span)).bfloat16().float()
            code_NGB = codes.nearest(own_NGB * torch.where(tried_NG1 == 0, 0.0, 1 / tried_NG1))
            error_NG1 = ((code_NGB * tried_NG1 - own_NGB).square() * counts_GB).sum(2, keepdim=True)
            better_NG1 = error_NG1 < best_NG1
            best_NG1 = torch.where(better_NG1, error_NG1, best_NG1)
            scale_NG1 = torch.where(better_NG1, tried_NG1, scale_NG1)
            chosen_NGB = torch.where(better_NG1, code_NGB, chosen_NGB)
        blocks = np.empty((own_NGB.shape[0] * own_NGB.shape[1], codes.block_bytes), np.uint8)
        blocks[:, :SCALE_BYTES] = scale_NG1.view(-1, 1).bfloat16().view(torch.uint8).numpy()
        packed = codes.with_codes(blocks, codes.stored(chosen_NGB.view(-1, codes.block)))
        return packed.reshape(*numbers.shape[:-1], self.num_bytes((row,)))

    def unpack(self, packed: Bytes, row: int) -> Numbers:
        """Code times scale, without rounding."""
        codes = self.codes(row)
        blocks = packed.reshape(-1, codes.block_bytes)
        numbers: Numbers = codes.codes_of(blocks) * scales_of(blocks)
        return numbers.reshape(*packed.shape[:-1], row)

    def tensors(self, name: str, packed: Bytes, row: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a checkpoint holds of a matrix.

        Args:
            name: `MODULE.weight`.
            packed: its rows, [R, bytes of a row].
            row: numbers of a row.
            dtype: what scales are stored in: that of the model's other numbers.

        Raises:
            UserError: a scale that this type does not hold.
        """
        import torch

        codes = self.codes(row)
        blocks = packed.reshape(-1, codes.block_bytes)
        exact = torch.from_numpy(scales_of(blocks)).view(len(packed), -1)
        scale = exact.to(dtype)
        if not torch.equal(scale.float(), exact):
            raise UserError(
                f"{name}: {str(dtype).removeprefix('torch.')} does not hold a scale of {self.name}, which is a "
                "bfloat16; give a parent in bfloat16 or float32"
            )
        stored = torch.from_numpy(blocks[:, SCALE_BYTES:].copy()).view(len(packed), -1)
        if self.is_float:
            return {name: stored.view(torch.float8_e4m3fn), f"{name}_scale": scale}
        size = torch.tensor([len(packed), row])
        return {f"{name}_packed": stored.view(torch.int32), f"{name}_scale": scale, f"{name}_shape": size}

    @property
    def file_format(self) -> str:
        """How the checkpoint's config names the layout."""
        return "naive-quantized" if self.is_float else "pack-quantized"

    @property
    def scheme(self) -> dict[str, Any]:
        """How the checkpoint's config describes such weights."""
        return {
            "num_bits": self.bits,
            "type": "float" if self.is_float else "int",
            "symmetric": True,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group,
            "dynamic": False,
        }


def scales_of(packed: Bytes) -> Numbers:
    """The bfloat16 before the codes of each block, [N, 1]: the upper half of a float32."""
    import numpy as np

    upper = packed[:, :SCALE_BYTES].copy().view(np.uint16).astype(np.uint32) << 16
    return upper.view(np.float32)


INT8: Final = "int8"
FP8: Final = "fp8"
INT4_G128: Final = "int4_g128"
INT4_G32: Final = "int4_g32"

COMPRESSED: Final[Mapping[str, CompressedFormat]] = MappingProxyType(
    {
        form.name: form
        for form in (
            CompressedFormat(INT8, WORD, WORD, 8, None, False, F32),
            CompressedFormat(FP8, WORD, WORD, 8, None, True, F32),
            CompressedFormat(INT4_G32, 32, 18, 4, 32, False, INT8),
            CompressedFormat(INT4_G128, 128, 66, 4, 128, False, INT4_G32),
        )
    }
)
"""Every format by its name, large ones first."""
