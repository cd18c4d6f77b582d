"""Packed tensors kept on scratch: rounding takes minutes for a model of 100M parameters, and one search rounds the same
tensors to the same formats for every estimate, candidate and shard.

A file is named by what it was made from, so that nothing here is ever out of date, and any process may write or lose
it. Where the disk is nearly full nothing more is kept.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.nas.formats.format import Format

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes, Numbers

FOLDER = "rounded"
"""Where they lie, below a worker's scratch."""
LEAST_FREE_BYTES = 2 << 30


@dataclass(frozen=True)
class KeptRounding:
    """Packed tensors of one machine.

    Args:
        folder: where they lie; it is made when it is needed.
    """

    folder: Path

    def rounded(self, form: Format, numbers: Numbers, importance: Numbers | None = None) -> Numbers:
        """`Format.rounded`, bit for bit, packed once a machine; arguments and errors are the same."""
        import numpy as np

        numbers = np.ascontiguousarray(numbers, np.float32)
        row = numbers.shape[-1]
        if form.block == 1 or not form.fits(row):
            return form.rounded(numbers, importance)
        path = self.folder / _name(form, numbers, importance)
        packed = self._read(path, (*numbers.shape[:-1], row // form.block * form.block_bytes))
        if packed is None:
            packed = form.pack(numbers, importance)
            self._write(path, packed)
        return form.unpack(packed, row)

    def _read(self, path: Path, shape: tuple[int, ...]) -> Bytes | None:
        import numpy as np

        try:
            packed: Bytes = np.fromfile(path, np.uint8)
            return packed.reshape(shape)
        except (OSError, ValueError):  # absent, or not whole
            return None

    def _write(self, path: Path, packed: Bytes) -> None:
        beside = path.with_suffix(f".{uuid.uuid4().hex}.part")
        with suppress(OSError):  # what cannot be kept is rounded again
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free > LEAST_FREE_BYTES + packed.nbytes:
                try:
                    packed.tofile(beside)
                    beside.replace(path)
                finally:
                    beside.unlink(missing_ok=True)


def _name(form: Format, numbers: Numbers, importance: Numbers | None) -> str:
    import numpy as np

    digest = blake2b(f"{form.name} {numbers.shape}".encode(), digest_size=20)
    digest.update(numbers.data)
    if importance is not None:
        digest.update(np.ascontiguousarray(importance, np.float32).data)
    return digest.hexdigest()
