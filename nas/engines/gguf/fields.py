"""The metadata of a GGUF file as values, before a writer is there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from inlay.nas.families.gguf import gguf_package


class Kind(IntEnum):
    """The value types that are written, by their numbers in the format."""

    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9


@dataclass(frozen=True)
class Field:
    """One key with its value."""

    key: str
    value: bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
    kind: Kind
    """The value's type, `ARRAY` for a sequence."""
    items: Kind | None = None
    """The type of a sequence's items."""


def add_fields(writer: Any, fields: Iterable[Field]) -> None:
    """Add fields to a `gguf.GGUFWriter`, in their order."""
    kinds = gguf_package().GGUFValueType

    for field in fields:
        items = None if field.items is None else kinds(field.items)
        writer.add_key_value(field.key, field.value, kinds(field.kind), items)


NO_TOKENIZER = Field("tokenizer.ggml.model", "none", Kind.STRING)
"""Of a file that is only timed."""
