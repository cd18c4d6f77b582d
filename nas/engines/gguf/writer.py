"""Writes a file of GGUF tensor by tensor: what it takes is one tensor's memory, whatever the model's size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inlay.nas.engines.gguf.fields import Field, add_fields
from inlay.nas.engines.gguf.metadata import Rotation
from inlay.nas.engines.gguf.packing import VECTORS, Packed, Stored
from inlay.nas.families.gguf import gguf_package
from inlay.nas.formats.gguf import GGUF

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inlay.nas.formats.format import Bytes
    from inlay.nas.formats.gguf import GgufFormat

    Array = NDArray[np.float32]
    Read = Callable[[str, GgufFormat], Bytes]
    Fields = Sequence[Field]

ALIGNMENT = 32
"""Bytes that every tensor's place in a file is a multiple of."""


def write_file(path: Path, packed: Packed, rotation: Rotation, fields: Fields, read: Read) -> None:
    """Writes a model.

    Args:
        path: the file; what is there is replaced.
        packed: its layers and tensors.
        rotation: of its positions.
        fields: everything that is not a tensor, the tokenizer's too.
        read: a tensor of the child by its whole-model name, as it is stored in a format.

    Raises:
        UserError: the extra `gguf` is not installed.
    """
    with _Writer(path, packed, rotation, fields) as writer:
        for tensor in _tensors(packed, rotation):
            if tensor.name == _DIVISORS:
                writer.tensor(tensor, np.asarray(rotation.divisors, np.float32))
            elif not tensor.sources:
                writer.tensor(tensor, np.zeros(tensor.shape, np.float32))
            else:
                writer.stored(_rows(tensor, read))


def write_skeleton(path: Path, packed: Packed, rotation: Rotation, fields: Fields) -> None:
    """Writes a model with random weights, for its times, which do not depend on them. Arguments as `write_file`."""
    generator = np.random.default_rng(0)
    with _Writer(path, packed, rotation, fields) as writer:
        for tensor in _tensors(packed, rotation):
            writer.noise(tensor, generator)


def write_hollow(path: Path, packed: Packed, rotation: Rotation, fields: Fields) -> None:
    """Writes a model whose weights are a hole in the file, for its sizes: it takes neither time nor disk. Arguments as
    `write_file`."""
    with _Writer(path, packed, rotation, fields):
        pass
    head = _aligned(path.stat().st_size)
    os.truncate(path, head + sum(_aligned(tensor.num_bytes) for tensor in _tensors(packed, rotation)))


def file_bytes(packed: Packed, rotation: Rotation, fields: Fields) -> int:
    """Bytes of the file that `write_file` would write, without any weights: its head is written and measured."""
    with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
        path = Path(folder) / "head.gguf"
        with _Writer(path, packed, rotation, fields):
            pass
        head = path.stat().st_size
    return _aligned(head) + sum(_aligned(tensor.num_bytes) for tensor in _tensors(packed, rotation))


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows, packed or not, of heads whose halves are rotated together in Transformers, as neighbouring pairs."""
    by_half = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return by_half.swapaxes(1, 2).reshape(rows.shape)


_FLOAT32 = np.dtype(np.float32)
_NOISE_ROWS = 64
_DIVISORS = "rope_freqs.weight"


def _tensors(packed: Packed, rotation: Rotation) -> Iterator[Stored]:
    if rotation.divisors:
        yield Stored(_DIVISORS, (len(rotation.divisors),), VECTORS)
    yield from packed.tensors


def _rows(tensor: Stored, read: Read) -> Bytes:
    parts = [read(source, GGUF[tensor.format]) for source in tensor.sources]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    expected = (*tensor.shape[:-1], GGUF[tensor.format].num_bytes(tensor.shape[-1:]))
    assert rows.shape == expected, f"{tensor.name}: {rows.shape} for {expected}"
    if not tensor.rotated_heads:
        return rows
    # A bias is one number a row.
    by_row = rows.reshape(tensor.shape[0], -1)
    return interleaved(by_row, tensor.rotated_heads).reshape(rows.shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Writer:
    """gguf's own, with all heads written at once and the tensors one by one."""

    def __init__(self, path: Path, packed: Packed, rotation: Rotation, fields: Fields) -> None:
        gguf = gguf_package()
        self._writer: Any = gguf.GGUFWriter(path, packed.arch)
        add_fields(self._writer, fields)
        for tensor in _tensors(packed, rotation):
            kind = gguf.GGMLQuantizationType(GGUF[tensor.format].number)
            self._writer.add_tensor_info(tensor.name, tensor.shape, _FLOAT32, tensor.num_bytes, raw_dtype=kind)
        self._writer.write_header_to_file(path)
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def tensor(self, tensor: Stored, numbers: Array) -> None:
        """The next one's numbers, rounded to its format."""
        self.stored(GGUF[tensor.format].pack(numbers))

    def stored(self, rows: Bytes) -> None:
        """The next one's bytes."""
        self._writer.write_tensor_data(rows)

    def noise(self, tensor: Stored, generator: np.random.Generator) -> None:
        """The next one's numbers: a few random rows again and again, or ones for a norm."""
        if len(tensor.shape) == 1:
            self.tensor(tensor, np.ones(tensor.shape, np.float32))
            return
        rows, row = tensor.shape
        few = generator.normal(0.0, row**-0.5, (min(rows, _NOISE_ROWS), row)).astype(np.float32)
        stored = GGUF[tensor.format].pack(few)
        self.stored(np.resize(stored, (rows, stored.shape[1])))
