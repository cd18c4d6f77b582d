"""How much of a search is done and how long the rest will take: the plan's estimates, corrected by what is seen.

What earlier runs left behind passes in no time and teaches nothing: shares of a stage are earned, by pieces that were
run, or skipped. The estimates of what is to come are scaled by the seconds seen over the seconds estimated for what was
earned; the running stage's own pace takes over as more of it is earned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inlay.cluster.events import PieceEvent

FAITH = 0.1
"""The estimates count as if so much of the search had agreed with them: a first short stage decides little."""
MOST = 5.0
"""The estimates are corrected by this factor at most, up or down."""
BEGINNING = 2.0
"""Seconds in which a batch's first piece begins where its workers are up."""
ENOUGH = 0.03
"""Of the search, to be earned before proportions alone tell a time."""
TEACHES = 0.1
"""The running stage corrects the estimates of later ones once so much of it was earned."""


@dataclass(frozen=True)
class Standing:
    """Where a search stands.

    Args:
        fraction: of its whole work, 0 to 1; where nothing is estimated, of its stages.
        estimated: whether anything was.
        seconds_left: None where nothing estimates them.
        stage: the running one's number, from 1.
        num_stages: of the search.
    """

    fraction: float
    seconds_left: float | None
    stage: int
    num_stages: int
    estimated: bool = True


@dataclass
class _Stage:
    """A stage under way or done; `at`, `skipped`, `low`, `high` and `end` are shares of it."""

    name: str
    estimate: float
    started: float
    told: float
    """When it was last seen to get on."""
    at: float = 0.0
    skipped: float = 0.0
    end: float = 1.0
    batches: int | None = None
    low: float = 0.0
    high: float = 0.0
    running: dict[str, float] = field(default_factory=dict)
    batch_left: float | None = None
    batch_started: float | None = None
    """When a batch began of which nothing was seen to run yet."""
    waited: float = 0.0
    """Seconds in which workers were started, beyond what every batch takes to begin."""

    @property
    def earned(self) -> float:
        return self.at - self.skipped

    @property
    def worked(self) -> float:
        """Seconds, until it was last seen to get on."""
        return self.told - self.started - self.waited

    def skip_to(self, share: float) -> None:
        if share > self.at:
            self.skipped += share - self.at
            self.at = share

    def next_batch(self) -> None:
        """A part whose number of batches is not known gives each of them half of what is left of it."""
        self.low, self.high = self.at, self.at + max(0.0, self.end - self.at) / (self.batches or 2)
        self.batches = max(1, self.batches - 1) if self.batches else None
        self.running.clear()
        self.batch_started = self.told


class SearchTime:
    """Follows a search's stages, their parts and batches of pieces.

    Args:
        stages: their names in order.
        estimates: seconds by stage; those that are not in it have no time that is known beforehand.
        clock: seconds from anywhere.
        of_this_device: whether they are seconds of the device that computes; else only their proportions mean
            something, and no time is told before the pace was seen.
    """

    def __init__(
        self,
        stages: Sequence[str],
        estimates: Mapping[str, float],
        clock: Callable[[], float],
        of_this_device: bool = True,
    ) -> None:
        self._names, self._clock = tuple(stages), clock
        self._estimates = {name: estimates.get(name, 0.0) for name in stages}
        self._known, self._of_this_device = any(self._estimates.values()), of_this_device
        self._done: list[_Stage] = []
        self._stage: _Stage | None = None

    def stage_started(self, name: str) -> None:
        """A stage begins."""
        self._stage = _Stage(name, self._estimates.get(name, 0.0), self._clock(), self._clock())

    def part(self, end: float, batches: int | None = None) -> None:
        """What follows takes the running stage up to the share `end`, in so many batches where that is known."""
        if (stage := self._stage) is not None:
            if end > stage.end:
                stage.skip_to(stage.end)
            stage.end, stage.batches = end, batches

    def piece_event(self, event: PieceEvent) -> None:
        """Something happened to a piece; the first event of a batch is `kept`."""
        stage = self._stage
        if stage is None:
            return
        if event.kind == "waiting":
            stage.batch_started = stage.told if stage.batch_started is None else stage.batch_started
        else:
            stage.told = self._clock()
        if event.kind == "kept":
            stage.next_batch()
            stage.skip_to(stage.low + (stage.high - stage.low) * event.done / max(1, event.total))
        elif event.kind != "waiting" and stage.batch_started is not None:
            stage.waited += max(0.0, stage.told - stage.batch_started - BEGINNING)
            stage.batch_started = None
        if event.kind in ("finished", "retried"):
            stage.running.pop(event.label, None)
        elif event.kind in ("started", "progress"):
            stage.running[event.label] = event.fraction
        share = (event.done + sum(stage.running.values())) / max(1, event.total)
        stage.at = max(stage.at, stage.low + (stage.high - stage.low) * min(1.0, share))
        stage.batch_left = event.seconds_left

    def stage_finished(self) -> None:
        """The running stage ended."""
        if self._stage is not None:
            self._stage.skip_to(1.0)
            self._stage.told = self._clock()
            self._done.append(self._stage)
            self._stage = None

    @property
    def stage_fraction(self) -> float:
        """How much of the running stage is done."""
        return self._stage.at if self._stage is not None else 0.0

    def standing(self) -> Standing:
        """Where the search stands now."""
        number = min(len(self._names), len(self._done) + (self._stage is not None))
        if not self._known:
            fraction = (len(self._done) + self.stage_fraction) / max(1, len(self._names))
            return Standing(fraction, None, number, len(self._names), False)
        done = sum(stage.estimate for stage in self._done)
        if self._stage is not None:
            done += self._stage.at * self._stage.estimate
        # Of the work and not of the time: what makes all stages slower does not move it.
        fraction = min(done / sum(self._estimates.values()), 0.99)
        scale = self._scale()
        if scale is None:
            return Standing(fraction, None, number, len(self._names))
        ahead = set(self._names) - {stage.name for stage in self._done}
        left = 0.0
        if self._stage is not None:
            ahead.discard(self._stage.name)
            left = self._rest(self._stage, scale)
        left += sum(scale * self._estimates[name] for name in ahead)
        return Standing(fraction, left, number, len(self._names))

    def _scale(self) -> float | None:
        """Seconds seen over seconds estimated, of all that was earned; None while that is not known well enough."""
        whole = sum(self._estimates.values())
        seen = expected = FAITH * whole if self._of_this_device else 0.0
        for stage in self._done:
            if stage.earned > 0 and stage.estimate:
                seen, expected = seen + stage.worked, expected + stage.earned * stage.estimate
        running = self._stage
        if running is not None and running.earned >= TEACHES and running.estimate:
            seen, expected = seen + running.worked, expected + running.earned * running.estimate
        if not self._of_this_device:
            return seen / expected if expected > ENOUGH * whole else None
        return min(MOST, max(1 / MOST, seen / expected))

    def _rest(self, stage: _Stage, scale: float) -> float:
        """Seconds left of the running stage: what was estimated, then more and more by its own pace."""
        rest = scale * stage.estimate * (1 - stage.at)
        if stage.earned > 0:
            pace = stage.worked / stage.earned
            batch = pace * (stage.high - stage.at)
            if stage.batch_left is not None:
                batch = min(stage.batch_left, 2 * batch)
            sure = min(1.0, 2 * stage.earned)
            rest = sure * (batch + pace * (1 - stage.high)) + (1 - sure) * rest
        # Time passes while nothing is told.
        return max(rest - (self._clock() - stage.told), 0.1 * rest)
