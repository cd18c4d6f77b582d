"""A `--limit` as it is written: `NAME=VALUE`, `NAME<=VALUE`, `NAME>=VALUE`, and for sweeps `NAME=FROM..TO`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inlay.nas.errors import UserError
from inlay.nas.problems import show

_FORM = re.compile(r"\s*([^=<>]*[^=<>\s])\s*(=|<=|>=)\s*([^=<>]*?)\s*", re.DOTALL)
_LONGEST = 200


@dataclass(frozen=True)
class Asked:
    """One limit in words: at most `value`, or at least where `lower`; `range` is what a sweep goes through."""

    text: str
    name: str
    lower: bool
    value: str

    @property
    def range(self) -> tuple[str, str] | None:
        """The two ends of `FROM..TO`, either may be empty; None for a single value."""
        low, dots, high = self.value.partition("..")
        return (low.strip(), high.strip()) if dots else None

    def refuse(self, why: str) -> UserError:
        """The error that says what is wrong with it."""
        return UserError(f"--limit {self.text}: {why}")


def parse_asked(text: str) -> Asked:
    """Reads one limit; UserError when it has another form."""
    match = _FORM.fullmatch(text) if len(text) <= _LONGEST and text.isprintable() else None
    if match is None or not match[3]:
        shown = text[:_LONGEST] if text.isprintable() else show(text, _LONGEST)
        raise UserError(
            f"--limit {shown}: write NAME=VALUE (at most) or 'NAME>=VALUE' (at least), such as runtime=0.6x"
        )
    return Asked(text, match[1], match[2] == ">=", match[3])
