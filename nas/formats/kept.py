"""Packed tensors kept on scratch: rounding takes minutes for a model of 100M parameters, and one search rounds the same
tensors to the same formats for every estimate, candidate and shard.

A file is named by what it was made from, so that nothing here is ever out of date, and any process may write or lose
it. Where the disk is nearly full nothing more is kept.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
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

    def packed(self, numbers: Numbers, form: Format, told: str, pack: Callable[[], Bytes]) -> Bytes:
        """What `pack` gives, called once a machine.

        Args:
            numbers: what is rounded, [..., row].
            form: its format.
            told: all else that the result depends on.
            pack: makes it.
        """
        if form.block == 1:
            return pack()
        path = self.folder / _name(numbers, form, told)
        found = self._read(path, (*numbers.shape[:-1], form.num_bytes((numbers.shape[-1],))))
        if found is None:
            found = pack()
            self._write(path, found)
        return found

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


def _name(numbers: Numbers, form: Format, told: str) -> str:
    digest = blake2b(f"{form.name} {numbers.shape} {told}".encode(), digest_size=20)
    digest.update(numbers.data)
    return digest.hexdigest()
