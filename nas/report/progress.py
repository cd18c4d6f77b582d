"""Progress of a run: one small class that stages talk to, in lines here, live on a terminal in `live.py`.

Progress goes to stderr, so that stdout holds results only.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from inlay.nas.quantities import show_bytes, show_seconds

SECONDS_BETWEEN_LINES = 10.0
_PROGRESS = re.compile(r"([a-z]+) +(?:started|waiting: .*|.* retried: .*|(\d+) of (\d+) pieces(?:, (.+) left)?.*)")


class PieceEventLike(Protocol):
    """What a fan-out of pieces reports; `inlay.cluster`'s PieceEvent has this form."""

    @property
    def kind(self) -> str:
        """`kept` (what was there before), `started`, `progress`, `finished`, `retried` or `waiting`."""

    @property
    def label(self) -> str:
        """The piece's name."""

    @property
    def done(self) -> int:
        """Pieces that are committed."""

    @property
    def total(self) -> int:
        """Pieces of the stage."""

    @property
    def seconds_left(self) -> float | None:
        """Estimated; None while unknown."""

    @property
    def note(self) -> str:
        """Why a piece is tried again, or what the stage waits for; else empty."""


class Reporter:
    """Prints a run as plain lines: a stage's start and end, in between a line every ten seconds, and every warning.

    Use it as a context manager, so that a live display is closed whatever happens. Subclasses draw differently; all
    methods may be called in any order and never raise.

    Args:
        stream: where lines go, stderr by default.
        clock: seconds from anywhere; tests give their own.
    """

    def __init__(self, stream: TextIO | None = None, clock: Any = time.monotonic) -> None:
        self.stream = stream or sys.stderr
        self._clock = clock
        self._stage = ""
        self._last_line = -SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the display."""

    def stage_started(self, name: str, total: int = 0) -> None:
        """A stage begins, with `total` pieces; 0 where it has none or the number is not known."""
        self._stage = name
        self._last_line = self._clock()
        self._line(name, f"started, {total} pieces" if total else "started")

    def piece_event(self, event: PieceEventLike) -> None:
        """A piece of the current stage started, got on or ended."""
        if event.note:
            self._line(self._stage, f"{event.label} {event.kind}: {event.note}".strip())
        if event.kind == "kept" and event.done:
            self._line(self._stage, f"{event.done} of {event.total} pieces are there already")
        now = self._clock()
        last = event.kind == "finished" and event.done == event.total
        if last or now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        self._line(self._stage, counts(event.done, event.total, event.seconds_left))

    def stage_finished(self, name: str, seconds: float, peak_bytes: int | None = None, note: str = "") -> None:
        """A stage ended: its wall time, its largest worker's memory, and what came out in a few words."""
        self._stage = ""
        self._line(name, finished(seconds, peak_bytes, note))

    def message(self, text: str) -> None:
        """Something worth knowing."""
        self._line("", text)

    def warning(self, text: str) -> None:
        """Something that the user should look at; the run goes on."""
        self._line("warning", text)

    def summary(self, result: Mapping[str, Any]) -> None:
        """The end of a run (`summary.py` says what is in it), printed to stdout."""
        from inlay.nas.report.summary import print_summary

        self.close()
        print_summary(result)

    def _line(self, name: str, text: str) -> None:
        print(f"{name:<10} {text}" if name else text, file=self.stream, flush=True)


def read_progress(log: str) -> dict[str, Any] | None:
    """The last line of a run's log that tells how far it is: `stage`, `done`, `total`, `time_left` and the `line`.

    A number that the line does not have is None.
    """
    for line in reversed(log.splitlines()):
        if found := _PROGRESS.fullmatch(line.strip()):
            stage, done, total, left = found.groups()
            return {
                "stage": stage,
                "done": int(done) if done else None,
                "total": int(total) if total else None,
                "time_left": left,
                "line": " ".join(line.split()),
            }
    return None


def counts(done: int, total: int, seconds_left: float | None) -> str:
    """`12 of 64 pieces, 3 min 20 s left`."""
    return ", ".join(part for part in (f"{done} of {total} pieces", time_left(seconds_left)) if part)


def time_left(seconds: float | None) -> str:
    """`3 min 20 s left`, or nothing while unknown."""
    return "" if seconds is None else f"{show_seconds(max(1.0, round(seconds)))} left"


def finished(seconds: float, peak_bytes: int | None, note: str) -> str:
    """`48 s, 310 MiB, 40 variants`."""
    return ", ".join(
        part for part in (show_seconds(seconds), show_bytes(peak_bytes) if peak_bytes else "", note) if part
    )


def make_reporter(stream: TextIO | None = None) -> Reporter:
    """The live display where `stream` (default stderr) is a terminal that can draw, else plain lines."""
    from rich.console import Console

    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        return Reporter(stream)
    from inlay.nas.report.live import LiveReporter

    return LiveReporter(console)
