"""Documents of text files and JSONL files, read line by line: where each is, and its text by its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from inlay.distill.records import PART_CHARACTERS, Records

Place = tuple[int, int, int]
"""Where a part of a document is: byte or row, length in bytes, number of the part within what is there."""


class Tell(Protocol):
    """Is told all bytes of a file, in their order."""

    def update(self, content: bytes, /) -> None: ...


def plain_documents(path: Path, separator: str, tell: Tell) -> Iterator[list[Place]]:
    """The parts of each document of a text file, none for an empty one: a line that is only `separator` ends one.

    Raises:
        ValueError: the file is not UTF-8.
    """
    parts: list[Place] = []
    start = size = at = 0
    filled = False
    with path.open("rb") as file:
        for line, whole in _bounded_lines(file, tell):
            text = _decoded(path, line, at)
            if whole and text.removeprefix("\ufeff" if at == 0 else "").strip() == separator:
                yield _filled(parts, (start, size, 0), filled)
                parts, filled, start, size = [], False, at + len(line), 0
            else:
                if size and size + len(line) > PART_CHARACTERS:
                    parts.append((start, size, 0))
                    start, size = at, 0
                size += len(line)
                filled = filled or bool(text.removeprefix("\ufeff").strip())
            at += len(line)
    yield _filled(parts, (start, size, 0), filled)


def json_documents(path: Path, records: Records, tell: Tell) -> Iterator[list[Place]]:
    """The parts of each document of a JSONL file, none for an empty one; blank lines are no documents.

    Raises:
        ValueError: a line is not UTF-8, not a JSON object, or has no document; with its number.
    """
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            tell.update(line)
            if line.strip():
                where = f"{path}, line {number}"
                value = _value(_decoded(path, line, at), records, where)
                yield [(at, len(line), part) for part in range(records.num_parts(value, where))]
            at += len(line)


def plain_texts(path: Path, places: Iterable[Place]) -> Iterator[str]:
    """The parts at these places of a text file."""
    with path.open("rb") as file:
        for place in places:
            yield _read(path, file, place).removeprefix("\ufeff" if place[0] == 0 else "")


def json_texts(path: Path, records: Records, places: Iterable[Place]) -> Iterator[str]:
    """The parts at these places of a JSONL file."""
    with path.open("rb") as file:
        held, value, where = -1, None, ""
        for place in places:
            if place[0] != held:
                held, where = place[0], f"{path}, the line at byte {place[0]}"
                value = _value(_read(path, file, place), records, where)
            yield records.part(value, place[2], where)


def _filled(parts: list[Place], last: Place, filled: bool) -> list[Place]:
    return [*parts, last] if filled and last[1] else parts if filled else []


def _read(path: Path, file: BinaryIO, place: Place) -> str:
    file.seek(place[0])
    return _decoded(path, file.read(place[1]), place[0])


def _value(line: str, records: Records, where: str) -> object:
    try:
        record = json.loads(line.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}); one object a line is wanted") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object; one object a line is wanted")
    return record[records.field_of(record, where)]


def _bounded_lines(file: BinaryIO, tell: Tell) -> Iterator[tuple[bytes, bool]]:
    """Lines, the long ones in pieces of whole characters; whether each is a whole line."""
    opens = True
    while line := file.readline(PART_CHARACTERS):
        ends = line.endswith(b"\n") or len(line) < PART_CHARACTERS
        if not ends:
            # The bytes of a character that was cut go to the next piece; more than three would be no UTF-8.
            cut = next((n for n in range(1, 4) if line[-n] & 0xC0 != 0x80), 0)
            if cut and line[-cut] & 0x80:
                file.seek(-cut, 1)
                line = line[:-cut]
        tell.update(line)
        yield line, opens and ends
        opens = ends


def _decoded(path: Path, content: bytes, at: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte offset {at + error.start} ({error.reason}); convert the file to UTF-8"
        ) from None
