"""Progress on a terminal: finished stages stay as lines, the current one is drawn live below them, 80 columns wide."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from inlay.nas.quantities import show_seconds
from inlay.nas.report.progress import PieceEventLike, Reporter, finished, time_left

LAST_EVENTS = 3


class LiveReporter(Reporter):
    """Draws the current stage: a bar, counts, time left, what runs now and the last events.

    Args:
        console: where to draw; it must be a terminal.
        clock: seconds from anywhere; tests give their own.
    """

    def __init__(self, console: Console, clock: Any = time.monotonic) -> None:
        super().__init__(clock=clock)
        self._console = console
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)
        self._spinner = Spinner("dots")
        self._started = 0.0
        self._done, self._total = 0.0, 0.0
        self._seconds_left: float | None = None
        self._note = ""
        self._running: dict[str, None] = {}
        self._events: deque[str] = deque(maxlen=LAST_EVENTS)

    def close(self) -> None:
        """Takes the live part off the screen; the lines above it stay."""
        self._stage = ""
        if self._live.is_started:
            self._live.stop()

    def stage_started(self, name: str, total: int = 0) -> None:
        """Begins to draw a stage."""
        self._stage, self._started = name, self._clock()
        self._done, self._total = 0.0, float(total)
        self._seconds_left, self._note = None, ""
        self._running.clear()
        self._events.clear()
        if not self._live.is_started:
            self._live.start()

    def piece_event(self, event: PieceEventLike) -> None:
        """Moves the bar and the list of what runs."""
        self._done, self._total, self._seconds_left = float(event.done), float(event.total), event.seconds_left
        self._note = f"{event.done}/{event.total}"
        if event.kind in ("started", "progress"):
            self._running[event.label] = None
            return
        self._running.pop(event.label, None)
        if event.kind == "kept":
            if event.done:
                self._events.append(f"{event.done} of {event.total} pieces were there already")
            return
        self._events.append(f"{event.label} {event.kind}{': ' if event.note else ''}{event.note}".strip())

    def stage_finished(self, name: str, seconds: float, peak_bytes: int | None = None, note: str = "") -> None:
        """Leaves one line for the stage."""
        self._stage = ""
        self._print(Text.assemble(("✓ ", "green"), (f"{name:<10}", "bold"), finished(seconds, peak_bytes, note)))

    def message(self, text: str) -> None:
        """Leaves a line."""
        self._print(Text(text))

    def warning(self, text: str) -> None:
        """Leaves a yellow line."""
        self._print(Text.assemble(("! ", "yellow"), text))

    def _print(self, text: Text) -> None:
        self._console.print(text, highlight=False)

    def _draw(self) -> RenderableType:
        if not self._stage:
            return Text("")
        head = Table.grid(padding=(0, 1))
        elapsed = show_seconds(max(1.0, round(self._clock() - self._started)))
        words = ", ".join(part for part in (self._note, time_left(self._seconds_left) or elapsed) if part)
        bar = ProgressBar(total=self._total, completed=self._done, width=24) if self._total else Text("")
        head.add_row(self._spinner, Text(f"{self._stage:<9}", style="bold"), bar, Text(words, overflow="ellipsis"))
        width = self._console.width
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self._events]
        if self._running:
            now = "  now: " + ", ".join(self._running)
            lines.append(Text(now if len(now) <= width else now[: width - 1] + "…", style="cyan", no_wrap=True))
        return Group(head, *lines)
