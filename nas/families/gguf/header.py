"""What stands before the weights of a GGUF file: its fields, and where each tensor lies.

The package gguf has a reader too, but it maps the whole file and makes an array of every token: seconds for a
vocabulary of 50,000, and a damaged file surfaces as whatever NumPy makes of it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from inlay.nas.errors import UserError

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_NUMBERS: Final = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""NumPy's names of the format's value types."""
_STRING, _ARRAY = 8, 9
Value = TypeVar("Value")
_MOST_DIMENSIONS: Final = 4


@dataclass(frozen=True)
class Place:
    """Where one tensor lies, and how it is stored."""

    format: str
    """The name of its type in ggml, such as `Q4_1`."""
    shape: tuple[int, ...]
    """As in Transformers: the file's own order is the reverse."""
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """Fields by key, tensors by name."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Place]

    def get(self, key: str, kind: type[Value], default: Value) -> Value:
        """The value of a field, or `default`. Raises `UserError` where it is of another kind."""
        value = self.fields.get(key, default)
        if not isinstance(value, kind):
            raise self.damaged(f"its `{key}` is no {kind.__name__}")
        return value

    def token_id(self, name: str) -> int | None:
        """The special token of that name, such as `eos`. Raises `UserError` where it is none of the file's tokens."""
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in self.fields:
            return None
        place = self.get(key, int, 0)
        if not 0 <= place < len(self.tokens):
            raise self.damaged(f"its `{key}` is {place}, which is none of its tokens")
        return place

    @property
    def tokens(self) -> list[str]:
        """The tokens in the order of their ids."""
        return self.texts("tokenizer.ggml.tokens")

    def texts(self, key: str) -> list[str]:
        """A list of texts, empty where there is none. Raises `UserError` where it is one of something else."""
        texts = self.get(key, list, [])
        if texts and not isinstance(texts[0], str):
            raise self.damaged(f"its `{key}` is no list of texts")
        return texts

    def damaged(self, reason: str) -> UserError:
        """The error that says so."""
        return _damaged(self.path, reason)


def read_header(path: Path) -> Header:
    """The header of the GGUF file at `path`; nothing of the weights is read.

    Raises `UserError` for a file of another kind, a damaged or truncated one, a format of a tensor that the package
    gguf does not know, and without that package.
    """
    with path.open("rb") as stream:
        reader = _Reader(path, stream)
        if reader.take(4) != MAGIC:
            raise _damaged(path, "it does not begin as GGUF files do")
        version = reader.number("<u4")
        if version not in _VERSIONS:
            raise UserError(
                f"parent: the file `{path}` is of version {version} of GGUF, which is not read; "
                "convert the model again with a newer llama.cpp."
            )
        num_tensors, num_fields = reader.number("<u8"), reader.number("<u8")
        fields = {reader.string(): reader.value(reader.number("<u4")) for _ in range(num_fields)}
        found = [reader.tensor() for _ in range(num_tensors)]
        alignment = _alignment(path, fields)
        start = -(-stream.tell() // alignment) * alignment
    return Header(path, fields, {each.name: _place(path, reader.size, start, each) for each in found})


@dataclass(frozen=True)
class _Told:
    """What the header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    kind: int
    """The number of its type."""
    offset: int
    """Bytes from where the weights begin."""


class _Reader:
    """Values one after the other; no length in the file is believed before the file is seen to be that long."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self.size = path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > self.size - self._stream.tell():
            raise _damaged(self._path, f"it is truncated: its header goes beyond its {self.size:,} bytes")
        return self._stream.read(count)

    def number(self, kind: str) -> Any:
        import numpy as np

        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def string(self) -> str:
        (length,) = struct.unpack("<Q", self.take(8))
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged(self._path, "a text in its header is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise _damaged(self._path, f"its header has a value of the unknown kind {kind}")
        items, count = self.number("<u4"), self.number("<u8")
        if items == _STRING:
            return [self.string() for _ in range(count)]
        if items not in _NUMBERS:
            raise _damaged(self._path, f"its header has a list of the unknown kind {items}")
        import numpy as np

        return np.frombuffer(self.take(count * np.dtype(_NUMBERS[items]).itemsize), _NUMBERS[items]).tolist()

    def tensor(self) -> _Told:
        name, dimensions = self.string(), self.number("<u4")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _damaged(self._path, f"its tensor `{name}` has {dimensions} dimensions")
        shape = tuple(self.number("<u8") for _ in range(dimensions))[::-1]
        return _Told(name, shape, self.number("<u4"), self.number("<u8"))


def _alignment(path: Path, fields: Mapping[str, Any]) -> int:
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _damaged(path, f"its `general.alignment` is {alignment}")
    return alignment


def _place(path: Path, size: int, start: int, told: _Told) -> Place:
    constants = gguf_package().constants
    try:
        kind = constants.GGMLQuantizationType(told.kind)
    except ValueError:
        raise UserError(
            f"parent: the tensor `{told.name}` in `{path}` is stored in a format that the package gguf does not know "
            f"(number {told.kind}); update it: `pip install -U gguf`."
        ) from None
    block, block_bytes = constants.GGML_QUANT_SIZES[kind]
    if told.shape[-1] % block:
        raise _damaged(
            path, f"its tensor `{told.name}` has rows of {told.shape[-1]}, which blocks of {block} do not fill"
        )
    place = Place(kind.name, told.shape, start + told.offset, prod(told.shape) // block * block_bytes)
    if place.offset + place.num_bytes > size:
        raise _damaged(path, f"it is truncated: its tensor `{told.name}` goes beyond its {size:,} bytes")
    return place


def gguf_package() -> Any:
    """The package gguf, which knows how quantised numbers are stored. Raises `UserError` where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "parent: GGUF files need the package gguf; install it by `pip install 'inlay[gguf]'`."
        ) from None
    return gguf


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"parent: the file `{path}` is damaged: {reason}; copy it again from the model's source.")
