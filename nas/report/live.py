"""Progress on a terminal: finished stages stay as lines, the search and its stage are drawn live below them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from inlay.nas.report.progress import Reporter
from inlay.nas.report.sentences import search_words

if TYPE_CHECKING:
    from inlay.cluster.events import PieceEvent

BAR = 20
"""Columns of a bar where the terminal has 80."""


class LiveReporter(Reporter):
    """Draws one line for the whole search, one for its stage and one for the layers that are worked on.

    The drawing has the same lines as long as a stage runs, so that nothing jumps.

    Args:
        console: where to draw; it must be a terminal.
        clock: seconds from anywhere; tests give their own.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self._console = console
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)
        self._spinner = Spinner("dots")
        self._running: dict[str, None] = {}

    def close(self) -> None:
        """Takes the live part off the screen; the lines above it stay."""
        self._stage = ""
        if self._live.is_started:
            self._live.stop()

    def message(self, text: str) -> None:
        """Leaves a line."""
        self._print(Text(text))

    def warning(self, text: str) -> None:
        """Leaves a yellow line."""
        self._print(Text.assemble(("! ", "yellow"), text))

    def found(self, text: str) -> None:
        """Leaves a line."""
        self._print(Text.assemble(("• ", "cyan"), text))

    def _show_start(self) -> None:
        self._running.clear()
        if not self._live.is_started:
            self._live.start()

    def _show_event(self, event: PieceEvent) -> None:
        if event.kind == "kept":
            self._running.clear()
        elif event.kind in ("started", "progress"):
            self._running[event.label] = None
        else:
            self._running.pop(event.label, None)

    def _show_end(self, name: str, words: str) -> None:
        self._print(Text.assemble(("✓ ", "green"), (f"{name:<10}", "bold"), words))

    def _say(self, text: str) -> None:
        self._print(Text(f"  {self._stage:<10}{text}", style="dim"))

    def _print(self, text: Text) -> None:
        self._console.print(text, highlight=False)
        self.log(text.plain)

    def _draw(self) -> RenderableType:
        if not self._stage:
            return Text("")
        width = self._console.width
        bar = min(BAR, width * BAR // 80)
        rows = Table.grid(padding=(0, 1))
        for columns in (1, 9, bar):
            rows.add_column(width=columns, no_wrap=True)
        room = width - (1 + 9 + bar + 3)
        standing = self._time.standing()
        if standing.num_stages:
            rows.add_row(
                "",
                Text("search", style="bold"),
                _bar(standing.fraction, bar),
                _cut(", ".join(filter(None, (self._round, search_words(standing)))), room),
            )
        own = _bar(self._time.stage_fraction, bar)
        rows.add_row(self._spinner, Text(self._stage, style="bold"), own, _cut(self._words(), room))
        # Other pieces are called by digests.
        now = "  now: " + ", ".join(self._running) if self._running and self._unit == "layers" else ""
        return Group(rows, _cut(now, width))


def _cut(words: str, columns: int) -> Text:
    return Text(words if len(words) <= columns else words[: columns - 1] + "…", no_wrap=True)


def _bar(share: float, width: int) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=width)
