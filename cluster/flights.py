"""Pieces under way: what the driver knows of each, and which of them have room."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inlay.cluster.capacity import Amounts, fits, without
from inlay.cluster.cost import Cost
from inlay.cluster.pieces import Piece


@dataclass
class Flight:
    """A piece under way."""

    piece: Piece
    progress_key: str
    cpus: float = 0.0
    """Held for it while it runs; so are its `gpus`."""
    gpus: float = 0.0
    began: float | None = None
    """When its worker was first heard of, be it that it waits."""
    started: float | None = None
    waits: str = ""
    """What it says that it waits for, which no deadline counts."""
    waited: float = 0.0
    """Seconds of such waits that are over."""
    waits_since: float | None = None
    moved: float = field(default_factory=time.monotonic)
    """When its progress was last seen to change; until it has started, when its worker got it, as far as is known."""
    sent: float = field(default_factory=time.monotonic)
    """When it was given to Ray."""
    fraction: float = 0.0
    node: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What it last reported beside its progress."""
    overdue: bool = False
    called_off: bool = False
    """Whether its worker was told that it need not go on."""
    dropped: bool = False
    """Whether it was taken out of the queue, since the call fails."""

    def waits_for(self, what: str) -> None:
        """Take in what it waits for now, empty for nothing."""
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        if what and self.waits_since is None:
            self.waits_since = now
        elif not what and self.waits_since is not None:
            self.waited, self.waits_since = self.waited + now - self.waits_since, None
        self.waits = what

    def cost(self, seconds: float | None) -> Cost:
        """Return what it has held until now; `seconds` are those that its worker tells, None of one that was lost.

        A worker that had it and was ended before it began has held it too; one that only waits holds nothing.
        """
        now = time.monotonic()
        if seconds is None:
            since = self.moved if self.began is None and self.overdue else self.began
            seconds = 0.0 if since is None else now - since
        waited = self.waited + (0.0 if self.waits_since is None else now - self.waits_since)
        return Cost.held(self.cpus, self.gpus, max(0.0, seconds - waited))


def has_room(node: Amounts, wanted: Flight, flights: Iterable[Flight]) -> bool:
    """Whether a node that nobody else uses has room for a piece beside those that run and those sent before it."""
    left = node
    for flight in sorted(flights, key=lambda flight: flight.started is None):  # stable: in the order they were sent
        there = fits(left, flight.piece.resources)
        if flight is wanted:
            return there
        if there:
            left = without(left, flight.piece.resources)
    return False
