"""The MLflow runs of a study: one for it, a nested one for each trial, and Optuna's plots as artifacts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna

from inlay.cluster.tracking import TrackedRun, Tracker, spool_folder
from inlay.nas.job import Job
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.tuning.study import Study, end_of
from inlay.nas.workspace import Workspace

STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "left": "KILLED"}
"""How MLflow calls the ends of trials."""
KL = "held_out_kl_nats"
SIZE_INCHES = (20, 6)
"""Of a picture: some have an axis for each setting, side by side."""


class TrackedStudy:
    """Tells MLflow; a tracker that is down costs nothing that was computed.

    Args:
        job: whose settings are tried.
        place: keeps what could not be sent yet.
        study: continues the run that it has from before.
        reporter: told of a tracker that is down.
    """

    def __init__(self, job: Job, place: Workspace, study: Study, reporter: Reporter) -> None:
        self._runs: dict[int, TrackedRun] = {}
        name = hashlib.sha256(f"{place.url} {study.name}".encode()).hexdigest()
        spool = spool_folder(place.store) / f"tune-{name[:16]}"
        self.tracker = Tracker(job.tracking.uri, job.tracking.experiment, reporter.warning, spool=spool)
        tags = {"inlay.parent": job.parent, "inlay.workspace": place.url, "inlay.study": study.name}
        self.tracker.start(f"tune {study.name}", tags, creation=name)
        self.tracker.json("job.json", job.to_dict())

    def begun(self, number: int, settings: Mapping[str, Any]) -> None:
        """A trial begins."""
        run = self.tracker.child(f"trial-{number}", f"trial {number}")
        run.params(settings)
        self._runs[number] = run

    def judged(self, number: int, place: int, kl_nats: float) -> None:
        """A trial's KL on the held-out text, after so many sixths of its training."""
        self._runs[number].metrics({KL: kl_nats}, step=place)

    def ended(self, study: Study, number: int) -> None:
        """A trial ended, as the study says."""
        (trial,) = (trial for trial in study.trials() if trial.number == number)
        run, end = self._runs.pop(number), end_of(trial)
        run.tags({"inlay.end": end, **({"inlay.reason": reason} if (reason := study.reason_of(trial)) else {})})
        if trial.value is not None and end == "complete":
            run.metrics({f"best_{KL}": trial.value})
        run.end(STATUS[end])
        if (best := study.best()) is not None and best.value is not None:
            self.tracker.metrics({f"best_{KL}": best.value}, step=len(study.trials()))

    def left(self, numbers: list[int]) -> None:
        """Trials that a dead run left and that are done again under other numbers."""
        for number in numbers:
            self.tracker.child(f"trial-{number}", f"trial {number}").end(STATUS["left"])

    def result(self, values: Mapping[str, Any], study: Study) -> None:
        """What came of all, and the pictures."""
        self.tracker.json("tune.json", values)
        self.tracker.params({f"best.{name}": value for name, value in values["best"]["settings"].items()})
        if compared := values["compared"]:
            self.tracker.metrics({"gain_nats": compared["gain_nats"], "gain_ratio": compared["gain_ratio"]})
        for name, figure in plots(study):
            self.tracker.figure(f"pictures/{name}.png", figure)

    def end(self, error: BaseException | None) -> None:
        """Ends the study's run, and those of trials that were under way: finished, killed or failed."""
        is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        for run in self._runs.values():
            run.end("KILLED")
        self.tracker.end("FINISHED" if error is None else "KILLED" if is_stopped else "FAILED")


def plots(study: Study) -> Iterator[tuple[str, Any]]:
    """Optuna's own pictures, by name; those that a study has too few trials for are left out."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as drawn

    complete = [trial for trial in study.trials() if end_of(trial) == "complete"]
    drawings: dict[str, Callable[[optuna.Study], Any]] = {
        "optimization_history": drawn.plot_optimization_history,
        "intermediate_values": drawn.plot_intermediate_values,
        "slice": drawn.plot_slice,
        "parallel_coordinate": drawn.plot_parallel_coordinate,
    }
    if study.importance():
        drawings["param_importances"] = drawn.plot_param_importances
    if len(complete) < 2:
        return
    pyplot.switch_backend("agg")  # Optuna draws by pyplot, which must not look for a screen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for name, draw in drawings.items():
            draw(study.study)
            figure = pyplot.gcf()
            figure.set_size_inches(*SIZE_INCHES)
            yield name, figure
            pyplot.close(figure)
