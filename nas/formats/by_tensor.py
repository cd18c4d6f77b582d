"""What a subblock's matrices are stored in where they differ: `q4_K,down=q6_K` has the down projection in q6_K.

The first is that of all matrices that are not named. A part is called as its module is, without `_proj`; which ones a
kind of subblock has is its own to say (`apart` in nas/modeling).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from inlay.nas.formats.registry import FORMATS


def stored_as(main: str, apart: Mapping[str, str]) -> str:
    """How it is written: parts in the order of their names, those that are stored as all are left out."""
    named = [f"{part}={form}" for part, form in sorted(apart.items()) if form != main]
    return ",".join([main, *named])


def form_of(stored: str, tensor: str) -> str:
    """The format of one matrix, by its name within the layer or the model."""
    return parts_of(stored).get(part_of(tensor), main_of(stored))


def part_of(tensor: str) -> str:
    """What the part of a matrix would be called."""
    return tensor.removesuffix(".weight").rpartition(".")[2].removesuffix("_proj")


def main_of(stored: str) -> str:
    """The format of all matrices that are not named."""
    return stored.partition(",")[0]


def parts_of(stored: str) -> dict[str, str]:
    """The formats of those that are, by part."""
    parts = [each.partition("=") for each in stored.split(",")[1:]]
    return {part: form for part, _, form in parts}


def forms_in(stored: str) -> tuple[str, ...]:
    """All formats in it, that of the rest first."""
    return main_of(stored), *parts_of(stored).values()


def is_stored_as(text: str, parts: Collection[str]) -> bool:
    """Whether a text says how a subblock with these parts is stored, as `stored_as` writes it."""
    apart = parts_of(text)
    known = set(apart) <= set(parts) and all(form in FORMATS for form in forms_in(text))
    return known and stored_as(main_of(text), apart) == text
