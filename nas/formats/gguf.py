"""The formats of GGUF files, rounded bit for bit as llama.cpp's own quantiser does.

The package libgguf holds ggml's reference rounding for all of them, importance included; it needs no file and no model,
which is all that the bindings of llama.cpp offer. tests/formats compare both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.errors import UserError
from inlay.nas.formats.codes import CODES, Codes
from inlay.nas.formats.format import Format

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes, Numbers


@dataclass(frozen=True)
class GgufFormat(Format):
    """One of ggml's types.

    Args:
        number: of the type in ggml's headers.
        file_type: the `general.file_type` of a file whose matrices are stored so; of the K-types the small one's.
        substitute: what stands in for rows that do not fill whole blocks: of K-types what llama.cpp's quantiser takes,
            of the others, where it refuses, what converters write.
    """

    number: int
    file_type: int
    substitute: str | None = None

    def holding(self, row: int) -> GgufFormat:
        """By substitutes until one fits."""
        found = self
        while not found.fits(row):
            assert found.substitute is not None
            found = GGUF[found.substitute]
        return found

    def codes(self, row: int) -> Codes | None:
        """Those of its blocks; None for the types whose numbers have an exponent each."""
        return CODES.get(self.name)

    def _packed(self, numbers: Numbers, importance: Numbers | None) -> Bytes:
        import numpy as np

        if self.name == F32:
            return numbers.view(np.uint8)
        packed: Bytes = _quantiser().quantize_rows(numbers, self.number, imatrix=importance).view(np.uint8)
        return packed

    def unpack(self, packed: Bytes, row: int) -> Numbers:
        """As ggml does."""
        import numpy as np

        if self.name == F32:
            return packed.view(np.float32)
        if self.name == F16:
            return packed.view(np.float16).astype(np.float32)
        if self.name == BF16:
            # The upper half of a float32.
            return (packed.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        numbers: Numbers = _quantiser().dequantize_rows(packed, self.number, n_per_row=row)
        return numbers


F32: Final = "f32"
F16: Final = "f16"
BF16: Final = "bf16"

GGUF: Final[Mapping[str, GgufFormat]] = MappingProxyType(
    {
        form.name: form
        for form in (
            GgufFormat(F32, 1, 4, 0, 0),
            GgufFormat(F16, 1, 2, 1, 1),
            GgufFormat(BF16, 1, 2, 30, 32),
            GgufFormat("q8_0", 32, 34, 8, 7, F16),
            GgufFormat("q6_K", 256, 210, 14, 18, "q8_0"),
            GgufFormat("q5_K", 256, 176, 13, 16, "q5_1"),
            GgufFormat("q5_1", 32, 24, 7, 9, F16),
            GgufFormat("q5_0", 32, 22, 6, 8, F16),
            GgufFormat("q4_K", 256, 144, 12, 14, "q5_0"),
            GgufFormat("q4_1", 32, 20, 3, 3, F16),
            GgufFormat("q4_0", 32, 18, 2, 2, F16),
            GgufFormat("q3_K", 256, 110, 11, 11, "q4_0"),
            GgufFormat("q2_K", 256, 84, 10, 10, "q4_0"),
        )
    }
)
"""Every format by its name, large ones first; sizes, numbers and file types as in ggml's headers, substitutes as in its
quantiser."""


def _quantiser() -> Any:
    try:
        import libgguf
    except ImportError:
        raise UserError(
            "GGUF's formats are rounded by the package libgguf, which is not installed here; install it by "
            "`pip install 'inlay[gguf]'`"
        ) from None
    return libgguf
