"""The Optuna study: where it is kept, whose it is, what it draws, and how its trials end.

The driver alone talks to its storage, by Optuna's own interface: whatever reads Optuna's studies reads this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from inlay.cluster.pieces import piece_seed
from inlay.cluster.urls import redacted
from inlay.distill.settings import JUDGED
from inlay.nas.errors import InlayError, UserError
from inlay.nas.job import Job
from inlay.nas.stages.tuning.space import Space, own_settings
from inlay.nas.tables.architecture import Blocks, blocks_of
from inlay.nas.workspace import Workspace

JOB, ARCHITECTURE, COMPARED, END, REASON, FIRST = (
    f"inlay.{name}" for name in ("job", "architecture", "compared", "end", "reason", "first_number")
)
"""Names of what a study or a trial is marked with."""
STARTUP_TRIALS = 6
"""Trials that are drawn at random, the job's own settings among them, before any is drawn by what others came to."""
UNPRUNED_TRIALS = 4
"""Trials that must have come to the end before one is stopped."""
UNPRUNED_STEPS = JUDGED // 2
"""Judgements before which none is stopped: curves of different rates and schedules still cross in the first half."""
WEIGHED_TRIALS = 6
"""Different outcomes from which the importance of settings is told."""
FAILED_IN_A_ROW = 3
"""Crashes after which the study gives up: the next would only be the same."""


@contextmanager
def told(url: str) -> Iterator[None]:
    """What a storage fails with, as a sentence."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise InlayError(
            f"the study's storage {redacted(url)} failed ({_reason(error)}); the trials that it has are kept, the same "
            "command goes on from there"
        ) from error


def default_storage(place: Workspace) -> str:
    """An SQLite file in the workspace.

    Raises:
        UserError: the workspace is no folder.
    """
    if place.folder is None:
        raise UserError(
            f"--storage: the workspace {place.url} is no folder that could hold an SQLite file; name a database, such "
            "as postgresql://host/name"
        )
    return f"sqlite:///{place.folder / 'tune.db'}"


def identity_of(job: Job, place: Workspace, models: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """sha256 of what fixes the study of a job: all that its results depend on, `models` among it, and the workspace."""
    values = job.to_dict()
    for free in ("cluster", "tracking"):
        del values[free]
    del values["recover"]["workers"], values["recover"]["sharding"]
    fixed = [values, place.url, dict(models), dict(texts)]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Counts:
    """How the trials of a study ended."""

    complete: int
    pruned: int
    diverged: int
    failed: int

    @property
    def finished(self) -> int:
        """All of them."""
        return self.complete + self.pruned + self.diverged + self.failed


class Study:
    """A study of one job and one metric.

    Args:
        job: whose settings are tried.
        identity: of the job, as `identity_of` tells it.
        metric: what is lowered.
        url: of the storage, as SQLAlchemy reads it.

    Raises:
        UserError: the storage cannot be opened, or is a file that holds another job's study.
    """

    def __init__(self, job: Job, identity: str, metric: str, url: str) -> None:
        self.job, self.url = job, url
        stem = job.file.stem if job.file else "inlay"
        self.name = f"{stem}-{identity[:12]}-{metric}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(url)
        _check_owner(storage, url, identity)
        self.study = optuna.create_study(
            storage=storage,
            study_name=self.name,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=UNPRUNED_STEPS),
        )
        # A study that goes on must not draw again what it drew at first.
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=piece_seed(job.seed, f"sampler {number}") % 2**32,
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
            constant_liar=True,
        )
        self.study.set_user_attr(JOB, identity)

    @property
    def architecture(self) -> Blocks | None:
        """The child that the study began with; None before it began."""
        held = self.study.user_attrs.get(ARCHITECTURE)
        return None if held is None else blocks_of(held)

    def begin(self, architecture: Blocks, space: Space) -> list[int]:
        """Notes the child, puts the job's own settings first, and has trials that a dead run left done again.

        Returns:
            The numbers of those that were left.
        """
        self.study.set_user_attr(ARCHITECTURE, [list(block) for block in architecture])
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(own_settings(self.job, space))
        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in left:
            first = trial.user_attrs.get(FIRST, trial.number)
            self.study.tell(trial.number, state=TrialState.FAIL)
            if set(trial.params) == set(space):
                self.study.enqueue_trial(trial.params, user_attrs={FIRST: first})
        return [trial.number for trial in left]

    def ask(self, space: Space) -> optuna.Trial:
        """The next trial."""
        return self.study.ask(fixed_distributions=space)

    def complete(self, trial: optuna.Trial, value: float) -> None:
        """A trial came to its end."""
        self.study.tell(trial, value)

    def pruned(self, trial: optuna.Trial) -> None:
        """A trial was stopped, since others were better at the same point."""
        self.study.tell(trial, state=TrialState.PRUNED)

    def diverged(self, trial: optuna.Trial, reason: str) -> None:
        """A trial was not finite: pruned, and counted by itself."""
        _mark(trial, "diverged", reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def failed(self, trial: optuna.Trial, reason: str) -> None:
        """A trial crashed."""
        _mark(trial, "crashed", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def trials(self) -> list[FrozenTrial]:
        """Those that finished, in the order of their numbers; what a dead run left is none of them."""
        held = self.study.get_trials(deepcopy=False)
        return [trial for trial in held if trial.state.is_finished() and end_of(trial) != "left"]

    def counts(self) -> Counts:
        """How they ended."""
        ends = [end_of(trial) for trial in self.trials()]
        return Counts(*(ends.count(end) for end in ("complete", "pruned", "diverged", "failed")))

    def best(self) -> FrozenTrial | None:
        """The trial of the least value, None while none came to its end."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return min(complete, key=lambda trial: (trial.value or 0.0, trial.number), default=None)

    def compared(self, number: int) -> dict[str, Any] | None:
        """What a comparison with this trial's settings came to, if there was one."""
        held = self.study.user_attrs.get(COMPARED)
        return held["values"] if held is not None and held["number"] == number else None

    def note_compared(self, number: int, values: Mapping[str, Any]) -> None:
        """Keeps what a comparison with this trial's settings came to."""
        self.study.set_user_attr(COMPARED, {"number": number, "values": dict(values)})

    def importance(self) -> dict[str, float]:
        """How much each setting decides, most first; sums to 1. Empty while too few trials came to their end."""
        values = {trial.value for trial in self.trials() if trial.state == TrialState.COMPLETE}
        if len(values) < WEIGHED_TRIALS:
            return {}
        return dict(optuna.importance.get_param_importances(self.study))

    @staticmethod
    def reason_of(trial: FrozenTrial) -> str:
        """Why a trial diverged or crashed; else empty."""
        return str(trial.user_attrs.get(REASON, ""))

    def crashes(self) -> list[str]:
        """Why the last trials in a row crashed."""
        reasons: list[str] = []
        for trial in sorted(self.trials(), key=lambda trial: (trial.datetime_complete, trial.number), reverse=True):
            if end_of(trial) != "failed":
                break
            reasons.append(self.reason_of(trial))
        return reasons


def end_of(trial: FrozenTrial) -> str:
    """`complete`, `pruned`, `diverged`, `failed`, or `left` of one that a dead run left and that was done again."""
    end = trial.user_attrs.get(END, "")
    if trial.state == TrialState.FAIL:
        return "failed" if end == "crashed" else "left"
    return "diverged" if end == "diverged" else trial.state.name.lower()


def _mark(trial: optuna.Trial, end: str, reason: str) -> None:
    trial.set_user_attr(END, end)
    trial.set_user_attr(REASON, reason)


def _check_owner(storage: optuna.storages.BaseStorage, url: str, identity: str) -> None:
    """A file belongs to one job; a server has room for many."""
    if not url.startswith("sqlite"):
        return
    for held in optuna.get_all_study_summaries(storage, include_best_trial=False):
        if held.user_attrs.get(JOB, identity) != identity:
            raise UserError(
                f"--storage: {redacted(url)} holds the study of another job ({held.study_name}), since its "
                "settings, text, parent or workspace are others; name another file, or delete that one"
            )


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Optuna's storage at an SQLAlchemy URL.

    Raises:
        UserError: there is none, and none can be made.
    """
    try:
        return optuna.storages.RDBStorage(url)
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--storage: {redacted(url)} cannot be opened ({_reason(error)}); give an SQLAlchemy URL such as "
            "sqlite:///tune.db or postgresql://host/name"
        ) from error


def _reason(error: Exception) -> str:
    return redacted(" ".join(str(error).split("\n[SQL")[0].split()))[:200]
