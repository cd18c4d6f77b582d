"""The MLflow run of a search: what it is sent, by which names; the driver alone talks to MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inlay.cluster.errors import LockedError
from inlay.cluster.events import PieceEvent
from inlay.cluster.tracking import Tracker, spool_folder
from inlay.nas.job import Job
from inlay.nas.loop.baselines import BASELINES
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.best import Best
from inlay.nas.report.figures import evaluation_markdown
from inlay.nas.report.pictures import all_pictures
from inlay.nas.report.progress import Reporter
from inlay.nas.report.prompts import prompts_text
from inlay.nas.report.records import Evaluation
from inlay.nas.report.sentences import round_words
from inlay.nas.workspace import Workspace

_NOT_IN_METRICS = re.compile(r"[^\w.\- /]")
"""Characters that MLflow takes in no metric's name."""
LIVE_POINTS = 500
"""Of one piece's numbers, at most, that are told while it runs."""


class TrackedSearch:
    """One run a search: the same job continues its run wherever it computes, another job gets its own."""

    def __init__(self, job: Job, place: Workspace, reporter: Reporter) -> None:
        self.job, self.place = job, place
        self._series: dict[str, list[str]] = {}
        self._live: dict[str, _Live] = {}
        self._num_best = 0
        self._num_rounds = 0
        spool = spool_folder(place.store) / job.search_digest()[:16]
        self.tracker = Tracker(job.tracking.uri, job.tracking.experiment, reporter.warning, spool=spool)

    def start(self, resume_run_id: str | None, creation: str) -> None:
        """Starts the search's run, by the name `creation`, or continues the one that it has from before."""
        name = self.job.file.stem if self.job.file else "search"
        if (own := self.place.own_round()) is not None:
            name = f"{own.search} {round_words(own.number, own.of)}"
        tags = {
            "inlay.parent": self.job.parent,
            "inlay.job": self.job.search_digest(),
            "inlay.workspace": self.place.url,
        }
        self.tracker.start(name, tags, resume_run_id=resume_run_id, creation=creation)
        self.tracker.params(flatten(self.job.to_dict()))
        self.tracker.json("job.json", self.job.to_dict())

    def end(self, error: BaseException | None) -> None:
        """Ends the run: finished, failed, or killed; one that another run of the workspace goes on with stays open."""
        if isinstance(error, LockedError):
            self.tracker.close()
            return
        status = (
            "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        )
        self.tracker.end(status)

    def run_id(self) -> str | None:
        """MLflow's id of the run; None while the tracker has not made it."""
        return self.tracker.run_id()

    def texts(self, texts: Texts) -> None:
        """The datasets as inputs of the run."""
        for name, ids in texts.by_name.items():
            text = self.job.data.validate if name in ("score", "report") else self.job.data.distill
            paths = ", ".join(self.job.resolve(source.path) for source in text.path if source.weight)
            profile = {"sequences": ids.shape[0], "sequence_length": ids.shape[1]}
            self.tracker.dataset(name, ids.digest, profile, paths or "written by the parent")

    def stage(self, entry: Mapping[str, Any]) -> None:
        """What a stage took, and its own figures; `entry` as in run.json."""
        self.tracker.metrics(
            {f"{entry['name']}.{key}": value for key, value in entry.items() if key not in ("name", "pieces")}
        )

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A table as an artifact."""
        self.tracker.table(f"tables/{name}.json", rows)

    def name_series(self, labels: Mapping[str, str]) -> None:
        """Says by what names the numbers of the coming pieces are shown: their labels by name."""
        self._series = {}
        for name, label in labels.items():
            self._series.setdefault(label, []).append(name)

    def numbers(self, event: PieceEvent) -> None:
        """What a piece reports while it runs, as metrics `<stage>.<name>.<number>` at the step among the numbers."""
        for name in self._series.get(event.label, [event.label.replace(" ", "_")]):
            series = f"{event.stage}.{name}"
            live = self._live.setdefault(series, _Live())
            if event.fraction < 1 and abs(event.fraction - live.fraction) < 1 / LIVE_POINTS:
                continue
            step = int(event.numbers["step"])
            live.fraction = event.fraction
            live.steps.add(step)
            self._metrics(series, {key: value for key, value in event.numbers.items() if key != "step"}, step)

    def best(self, best: Best) -> None:
        """The best architecture so far, as metrics at its number among those that were."""
        self.tracker.metrics(best.metrics(), step=self._num_best)
        self._num_best += 1

    def rounds(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        """What each round of the pool brought that was not told yet."""
        for row in rounds[self._num_rounds :]:
            figures = {name: row[name] for name in ("best_kl_nats", "gain_nats", "prediction_error")}
            self.tracker.metrics({f"assemble.{name}": value for name, value in figures.items()}, step=row["round"])
        self._num_rounds = len(rounds)

    def solution(self, solution: Mapping[str, Any]) -> None:
        """The kept architecture."""
        self.tracker.json("solution.json", solution)

    def curves(self, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Recovery losses by optimizer step; the tracker gets those that it was not told while they came."""
        for name, curve in curves.items():
            series = f"recover.{name}"
            told = self._live.get(series, _Live()).steps
            for point in curve:
                step = int(point["step"])
                if step not in told:
                    self._metrics(series, {key: value for key, value in point.items() if key != "step"}, step)

    def evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """The figures of child, parent and baselines, and their table as the run's description."""
        self.tracker.json("evaluation.json", evaluation)
        shown = Evaluation.of(evaluation)
        self.tracker.tags({"mlflow.note.content": evaluation_markdown(shown)})
        if shown.prompts:
            self.tracker.text("prompts.txt", prompts_text(shown))
        for name in (n for n in ("parent", "child", *BASELINES) if n in evaluation):
            self._metrics_of(name, evaluation[name])
            for source, figures in evaluation[name].get("sources", {}).items():
                self._metrics_of(f"{name}.{_NOT_IN_METRICS.sub('_', source)}", figures)

        for row in shown.tasks:
            metric = _NOT_IN_METRICS.sub("_", f"{row.task}.{row.metric}")
            self.tracker.metrics({f"parent.{metric}": row.parent, f"child.{metric}": row.child})
        if found := shown.sensitivity:
            figures = {"parent": found.parent, "child": found.child}
            self.tracker.metrics({f"{name}.prompt_sensitivity": value for name, (value, _) in figures.items()})

    def pictures(self) -> None:
        """Every picture that the workspace has the data for."""
        for name, figure in all_pictures(self.place):
            self.tracker.figure(f"pictures/{name}.png", figure)

    def _metrics_of(self, name: str, figures: Mapping[str, Any]) -> None:
        """Every number among these figures, once."""
        known = {k: v for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self.tracker.metrics({f"{name}.{key}": value for key, value in known.items()})

    def _metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        self.tracker.metrics({f"{series}.{key}": value for key, value in values.items()}, step=step)


@dataclass
class _Live:
    """What was told of a series: how far its piece was, and the steps."""

    fraction: float = -1.0
    steps: set[int] = field(default_factory=set)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted params."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, name + ".")
        else:
            flat[name] = str(value)
    return flat
