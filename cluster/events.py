"""What a fan-out tells while it runs, and its estimate of the time left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from inlay.cluster.pieces import Record


@dataclass(frozen=True)
class PieceEvent:
    """One thing that happened to a fan-out.

    `kept`: `done` pieces were there already (told once, first); `started`, `progress`, `finished`: of one piece;
    `retried`: its worker was lost, `note` says how; `waiting`: nothing could start for a while, `note` says for what.
    """

    kind: Literal["kept", "started", "progress", "finished", "retried", "waiting"]
    label: str
    stage: str
    done: int
    """Pieces of the call that are committed, earlier ones included."""
    total: int
    seconds_left: float | None
    """Of the whole call; None while nothing is known."""
    fraction: float = 0.0
    """Of this piece, 0 to 1."""
    note: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What this piece reported beside its progress."""


class TimeLeft:
    """Estimates the rest of a fan-out from the mean time of each stage's pieces."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._pieces: dict[str, int] = defaultdict(int)
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        """Take a committed piece into the means."""
        self._seconds[record.stage] += record.seconds
        self._pieces[record.stage] += 1

    def seconds(
        self, waiting: Mapping[str, int], running: Sequence[tuple[str, float, float]], workers: int
    ) -> float | None:
        """Return the seconds left, None while unknown.

        `waiting` has the number of pieces not sent by stage, `running` the stage, fraction done and seconds spent of
        each piece under way.
        """
        rest = [(self._mean(stage), count) for stage, count in waiting.items() if count]
        rest += [(self._left(*piece), 1) for piece in running]
        count = sum(pieces for _, pieces in rest)
        known = [(seconds, pieces) for seconds, pieces in rest if seconds is not None]
        if not count:
            return 0.0
        if not known:
            return None
        whole = sum(seconds * pieces for seconds, pieces in known) * count / sum(pieces for _, pieces in known)
        # Once every piece has its worker, the slowest of them says how long it takes.
        return max(whole / min(workers, count), max(seconds for seconds, _ in known) if count <= workers else 0.0)

    def _left(self, stage: str, fraction: float, spent: float) -> float | None:
        if fraction > 0.02:
            return spent * (1 - fraction) / fraction
        mean = self._mean(stage)
        return None if mean is None else max(mean - spent, 0.05 * mean)

    def _mean(self, stage: str) -> float | None:
        pieces = self._pieces.get(stage)
        return self._seconds[stage] / pieces if pieces else None
