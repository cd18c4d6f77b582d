"""Progress of a run: one small class that stages talk to, in lines here, live on a terminal in `live.py`.

Progress goes to stderr, so that stdout holds results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from inlay.cluster.cost import Cost
from inlay.nas.report.sentences import batch_words, cost_words, finished_words, round_words, search_words
from inlay.nas.report.time_left import SearchTime

if TYPE_CHECKING:
    from inlay.cluster.events import PieceEvent

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Prints a run as plain lines: a stage's start and end, in between a line every ten seconds, and every warning.

    Use it as a context manager, so that a live display is closed whatever happens. Subclasses draw differently; all
    methods may be called in any order and never raise.

    Args:
        stream: where lines go, stderr by default.
        clock: seconds from anywhere; tests give their own.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream or sys.stderr
        self.log: Callable[[str], None] = lambda line: None
        """Told every line that stays to be read."""
        self._clock = clock
        self._time = SearchTime((), {}, clock)
        self._stage = ""
        self._round = ""
        self._what, self._unit = "", "pieces"
        self._done, self._total = 0, 0
        self._told_kept = False
        self._cost = Cost()
        self._last_line = -SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the display."""

    def search_started(
        self, stages: Sequence[str], estimates: Mapping[str, float], of_this_device: bool = True
    ) -> None:
        """A whole search begins: its stages in order, and the seconds that each is thought to take, where known.

        `of_this_device`: whether they are seconds of the device that computes; else only their proportions count.
        """
        self._time = SearchTime(stages, estimates, self._clock, of_this_device)

    def round_started(self, number: int, rounds: int) -> None:
        """A search begins that is one of several rounds."""
        self._round = round_words(number, rounds)
        self.message(self._round)

    def stage_started(self, name: str) -> None:
        """A stage begins."""
        self._stage = name
        self._what, self._unit, self._done, self._total = "", "pieces", 0, 0
        self._told_kept = False
        self._cost = Cost()
        self._time.stage_started(name)
        self._show_start()

    def spent(self, cost: Cost) -> None:
        """What the running stage has held of the cluster so far, in earlier runs of the search too."""
        self._cost = cost

    def part(self, end: float, batches: int | None = None) -> None:
        """What follows takes the stage up to the share `end`, in so many batches of pieces where that is known."""
        self._time.part(end, batches)

    def kept(self, done: int, total: int, unit: str, what: str = "") -> None:
        """So much of the stage, or of its first batch, is there from an earlier run; told once."""
        if done and not self._told_kept:
            self._told_kept = True
            self._say(f"{what}: " * bool(what) + f"{done} of {total} {unit} are there already")

    def batch_started(self, what: str, unit: str = "pieces") -> None:
        """A batch of pieces follows: what it is for (`true KL of 4 candidates`), and what its pieces are (`shards`)."""
        self._what, self._unit, self._done, self._total = what, unit, 0, 0

    def piece_event(self, event: PieceEvent) -> None:
        """A piece of the batch started, got on or ended."""
        self._done, self._total = event.done, event.total
        self._time.piece_event(event)
        if event.kind == "kept":
            self.kept(event.done, event.total, self._unit, self._what)
        # What this run did is not there from before.
        self._told_kept |= event.kind == "finished"
        if event.note:
            self._say(f"{event.label} {event.kind}: {event.note}".strip())
        self._show_event(event)

    def stage_finished(self, name: str, seconds: float, peak_bytes: int | None = None, note: str = "") -> None:
        """A stage ended: its wall time, its largest worker's memory, and what came out in a few words."""
        self._stage = ""
        self._time.stage_finished()
        self._show_end(name, finished_words(seconds, peak_bytes, self._cost, note))

    def found(self, text: str) -> None:
        """The best architecture so far is another one."""
        self._say(text)

    def message(self, text: str) -> None:
        """Something worth knowing."""
        self._out(text)

    def warning(self, text: str) -> None:
        """Something that the user should look at; the run goes on."""
        self._line("warning", text)

    def summary(self, result: Mapping[str, Any]) -> None:
        """The end of a run (`summary.py` says what is in it), printed to stdout."""
        from inlay.nas.report.summary import print_summary

        self.close()
        print_summary(result)

    def _words(self) -> str:
        """What the running batch does and how far it is."""
        return batch_words(self._what, self._done, self._total, self._unit) if self._total else self._what

    def _say(self, text: str) -> None:
        """Something of the running stage that stays to be read."""
        self._line(self._stage, text)

    def _show_start(self) -> None:
        self._last_line = self._clock()
        self._line(self._stage, self._of_search("started"))

    def _show_event(self, event: PieceEvent) -> None:
        now = self._clock()
        if event.kind == "kept" or now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        self._line(self._stage, self._of_search(self._words()))

    def _show_end(self, name: str, words: str) -> None:
        self._line(name, words)

    def _of_search(self, words: str) -> str:
        standing = self._time.standing()
        if not standing.num_stages:
            return words
        cost = f"{self._stage} {cost_words(self._cost)} so far" if self._cost else ""
        return " · ".join(filter(None, (words, self._round, f"search {search_words(standing)}", cost)))

    def _line(self, name: str, text: str) -> None:
        self._out(f"{name:<10} {text}")

    def _out(self, line: str) -> None:
        print(line, file=self.stream, flush=True)
        self.log(line)
