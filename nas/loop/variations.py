"""Ways to write a prompt that change nothing of what is meant: slips of the keyboard, and its form."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

MOST = 6
"""Variations of a prompt, itself among them."""
_ONE_IN = 8
"""Of so many words one has a slip, and one at least."""
_WORD = re.compile(r"[^\W\d_]{4,}")

_Slip = Callable[[str, int], str]


def variations(prompt: str, random: np.random.Generator) -> list[str]:
    """The prompt as it is, with three kinds of slips (letters swapped, left out, doubled), in small letters, and behind
    an empty line; those that come out the same once. Slips are inside of words of four letters or more."""
    slips: tuple[_Slip, ...] = (_swapped, _left_out, _doubled)
    found = [prompt, *(_with(slip, prompt, random) for slip in slips), prompt.lower(), f"\n\n{prompt}"]
    return list(dict.fromkeys(found))


def _with(slip: _Slip, prompt: str, random: np.random.Generator) -> str:
    words = list(_WORD.finditer(prompt))
    number = min(len(words), -(-len(words) // _ONE_IN))
    places = sorted(random.choice(len(words), size=number, replace=False)) if words else []
    for place in reversed(places):
        start, end = words[place].span()
        letter = int(random.integers(start + 1, end - 2))
        prompt = slip(prompt, letter)
    return prompt


def _swapped(text: str, place: int) -> str:
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def _left_out(text: str, place: int) -> str:
    return text[:place] + text[place + 1 :]


def _doubled(text: str, place: int) -> str:
    return text[:place] + text[place] + text[place:]
