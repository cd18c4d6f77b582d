"""The trials of a study on Ray: as many at once as have room, told from their live KL, stopped where others are better.

Ask and tell: the driver asks the study for settings whenever a worker is free, and tells it what came of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import optuna

from inlay.cluster.errors import PieceError
from inlay.cluster.events import PieceEvent
from inlay.cluster.fanout import run_pieces
from inlay.cluster.pieces import Piece, Record
from inlay.nas.errors import InlayError, UserError
from inlay.nas.stages.tuning.pieces import Trainer
from inlay.nas.stages.tuning.space import Space, own_settings, settings_of
from inlay.nas.stages.tuning.study import FAILED_IN_A_ROW, FIRST, Study
from inlay.nas.stages.tuning.tracked import TrackedStudy

OF_THE_CLUSTER = ("StoreError", "DoesNotFit", "NotReady")
"""Kinds of failures that no other settings would spare."""


@dataclass
class _Running:
    trial: optuna.Trial
    piece: Piece
    reported: int = 0
    """Judgements that the study was told."""


@dataclass
class Trials:
    """Runs the trials that a study still lacks.

    Args:
        study: is asked and told.
        space: what is drawn.
        trainer: makes their pieces.
        tracked: shows them.
        wanted: finished trials in all, those of earlier runs included.
        timeout: seconds after which no more are begun.
    """

    study: Study
    space: Space
    trainer: Trainer
    tracked: TrackedStudy
    wanted: int
    timeout: float | None
    clock: Callable[[], float] = time.monotonic
    running: dict[str, _Running] = field(default_factory=dict, init=False)
    """By the labels of their pieces."""
    called_off: set[str] = field(default_factory=set, init=False)
    """Keys of the pieces that are to end early."""

    def __post_init__(self) -> None:
        self.finished = self.study.counts().finished
        self.started = self.clock()

    def run(self) -> None:
        """Runs them; a crash is counted, and the others go on.

        Raises:
            InlayError: `FAILED_IN_A_ROW` crashed one after the other.
            ClusterError: workers, storage or workspace are gone; what was told stays.
        """
        search = self.trainer.search
        search.reporter.batch_started("trials of settings", "trials")
        while True:
            try:
                run_pieces(
                    search.workspace.store,
                    [running.piece for running in self.running.values()],
                    search.cluster,
                    on_event=self._on_event,
                    on_record=self._on_record,
                    more=self._next,
                    called_off=self.called_off,
                    deadline_seconds=search.job.cluster.patience,
                )
                return
            except PieceError as error:
                if error.kind in OF_THE_CLUSTER or error.label not in self.running:
                    raise
                self._failed(self.running.pop(error.label).trial, str(error))

    def _next(self) -> Piece | None:
        """The next trial's piece, None where enough are finished or under way, or the time is over."""
        while not self._is_over():
            trial = self.study.ask(self.space)
            settings = settings_of(self.trainer.search.job, trial.params)
            first = trial.user_attrs.get(FIRST, trial.number)
            self.tracked.begun(trial.number, settings)
            try:
                piece = self.trainer.piece(f"trial {first}", settings, self.trainer.search.job.seed)
            except UserError as error:  # enqueued by somebody, and none that a job may have
                self._failed(trial, str(error))
                continue
            self.running[piece.label] = _Running(trial, piece)
            return piece
        return None

    def _is_over(self) -> bool:
        if self.timeout is not None and self.clock() - self.started >= self.timeout:
            return True
        return self.finished + len(self.running) >= self.wanted

    def _on_event(self, event: PieceEvent) -> None:
        told = replace(event, done=min(self.finished, self.wanted), total=self.wanted, seconds_left=None)
        self.trainer.search.reporter.piece_event(told)
        running = self.running.get(event.label)
        if running is None:
            return
        held_out = sorted((int(place), kl_nats) for place, kl_nats in event.numbers.items())
        if self._report(running, held_out) and running.trial.should_prune():
            self.called_off.add(running.piece.key)

    def _report(self, running: _Running, held_out: list[tuple[int, float]]) -> bool:
        """Tells the study what it does not know of a trial yet; whether there was anything."""
        news = held_out[running.reported :]
        for place, kl_nats in news:
            running.trial.report(kl_nats, step=place)
            self.tracked.judged(running.trial.number, place, kl_nats)
        running.reported += len(news)
        return bool(news)

    def _on_record(self, record: Record) -> None:
        running = self.running.pop(record.label, None)
        if running is None:
            return
        values, trial = record.values, running.trial
        self._report(running, [(int(place), float(kl_nats)) for place, kl_nats in values["held_out"]])
        shutil.rmtree(running.piece.arguments["checkpoint"], ignore_errors=True)
        if values["status"] == "done":
            best = self.study.best()
            self.study.complete(trial, float(values["kl_nats"]))
            is_best = best is None or best.value is None or values["kl_nats"] < best.value
            self._tell(trial, f"KL {values['kl_nats']:.4f}{', the best so far' if is_best else ''}")
        elif values["status"] == "diverged":
            self.study.diverged(trial, str(values["reason"]))
            self._tell(trial, f"diverged: {values['reason']}")
        else:
            self.study.pruned(trial)
            # What others had come to by then decided it: with the same settings another time it might go on.
            self.trainer.search.workspace.store.delete(running.piece.record_key)
            self._tell(trial, f"stopped early at KL {values['held_out'][-1][1]:.4f}")

    def _failed(self, trial: optuna.Trial, reason: str) -> None:
        self.study.failed(trial, reason)
        self._tell(trial, f"failed: {reason}")
        reasons = self.study.crashes()
        if len(reasons) >= FAILED_IN_A_ROW:
            raise InlayError(
                f"tune: {FAILED_IN_A_ROW} trials failed in a row, the last since {reasons[0]}; what finished is kept, "
                "the same command goes on from there"
            )

    def _tell(self, trial: optuna.Trial, what: str) -> None:
        job = self.trainer.search.job
        own, settings = own_settings(job, self.space), settings_of(job, trial.params)
        changed = [f"{name} {value}" for name, value in settings.items() if value != own[name]]
        words = ", ".join(changed) or "the job's own settings"
        self.finished += 1
        self.trainer.search.reporter.found(f"trial {trial.number}: {what} ({words})")
        self.tracked.ended(self.study, trial.number)
