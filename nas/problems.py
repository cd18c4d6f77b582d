"""What is told of a value that a user gave: its path, what was written, and what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST_WORD = 100
"""Longer ones are no slip of the keyboard, and take long to compare."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, at the path of one field (`space.ffn[0].width`; "" is the whole file)."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


class FieldProblems(ValueError):
    """Several problems below one field; raised inside validators, paths relative to the field (`[2].kv_heads`)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = tuple(problems)


def path_of(location: Sequence[str | int]) -> str:
    """`("space", "ffn", 0)` as `space.ffn[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{plain_key(part)}"
    return text.removeprefix(".")


def plain_key(key: str) -> str:
    """A key as it stands in a path: as it is where it looks like a name, else quoted and short."""
    return key if re.fullmatch(r"[\w-]{1,60}", key) else show(key, 40)


def show(value: object, limit: int = 60) -> str:
    """A value as one short printable piece of text."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean `width`? ` where one is close enough, else nothing."""
    close = closest(word, known)
    return f"did you mean `{close}`? " if close else ""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that is close enough to be meant, else nothing."""
    if len(word) > LONGEST_WORD:
        return ""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), "")
