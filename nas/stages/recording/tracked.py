"""The MLflow run of a search: what it is sent, by which names; the driver alone talks to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inlay.cluster.cost import Cost
from inlay.cluster.errors import LockedError
from inlay.cluster.events import PieceEvent
from inlay.cluster.tracking import JOB_TAG, Tracker, spool_folder, submitted_tags
from inlay.cluster.tracking_origin import installed_packages, origin_tags
from inlay.cluster.tracking_system import SystemMetrics
from inlay.nas.job import Job
from inlay.nas.loop.baselines import BASELINES
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.best import Best
from inlay.nas.report.figures import evaluation_markdown
from inlay.nas.report.page import page_of
from inlay.nas.report.pictures import all_pictures
from inlay.nas.report.progress import Reporter
from inlay.nas.report.prompts import prompts_text
from inlay.nas.report.records import Evaluation
from inlay.nas.report.sentences import round_words
from inlay.nas.stages.recording.metric_names import figure_metrics, plain
from inlay.nas.stages.recording.tracked_models import RECOVER, Live, TrackedModels
from inlay.nas.workspace import Workspace


class TrackedSearch:
    """One run a search: the same job continues its run wherever it computes, another job gets its own."""

    def __init__(self, job: Job, place: Workspace, reporter: Reporter) -> None:
        self.job, self.place = job, place
        self._live: dict[str, Live] = {}
        self._system: SystemMetrics | None = None
        self._num_best = 0
        self._num_rounds = 0
        spool = spool_folder(place.store) / job.search_digest()[:16]
        self.tracker = Tracker(job.tracking.uri, job.tracking.experiment, reporter.warning, spool=spool)
        self.models = TrackedModels(self.tracker)

    @property
    def name(self) -> str:
        """What the search is called: by its file, or by its id where it was submitted; a round by its number too."""
        if (own := self.place.own_round()) is not None:
            return f"{own.search} {round_words(own.number, own.of)}"
        return self.job.file.stem if self.job.file else submitted_tags().get(JOB_TAG, "search")

    def start(self, resume_run_id: str | None, creation: str) -> None:
        """Starts the search's run, by the name `creation`, or continues the one that it has from before."""
        submitted = submitted_tags().get(JOB_TAG)
        tags = {
            "inlay.parent": self.job.parent,
            "inlay.digest": self.job.search_digest(),
            "inlay.workspace": self.place.url,
            **origin_tags(self.job.file.name if self.job.file else self.name, submitted is not None),
        }
        self.tracker.start(self.name, tags, resume_run_id=resume_run_id, creation=creation)
        self.models.start(creation)

    def go_on(self, run_id: str, creation: str) -> None:
        """Continues the run of a finished search, which says whose it is and what it was made from."""
        self.tracker.start(self.name, resume_run_id=run_id, creation=creation)
        self.models.start(creation)

    def describe(self) -> None:
        """What is searched, and with which packages."""
        self.tracker.params(flatten(self.job.to_dict()))
        self.tracker.json("job.json", self.job.to_dict())
        self.tracker.text("requirements.txt", installed_packages())

    def watch(self, begun: float) -> None:
        """Tells from now on what the search takes of this machine; `begun`: when it began, in seconds since 1970."""
        self._system = SystemMetrics(self.tracker.metrics, begun)

    def end(self, error: BaseException | None) -> None:
        """Ends the run: finished, failed, or killed; one that another run of the workspace goes on with stays open."""
        if self._system is not None:
            self._system.end()
        if isinstance(error, LockedError):
            self.tracker.close()
            return
        status = (
            "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        )
        self.models.end(status)
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
            {f"{entry['name']}/{key}": value for key, value in entry.items() if key not in ("name", "pieces")}
        )

    def cost(self, cost: Cost) -> None:
        """What the search has held of the cluster so far, all stages together."""
        self.tracker.metrics({f"cost/{name}": value for name, value in asdict(cost).items()})

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A table as an artifact."""
        self.tracker.table(f"tables/{name}.json", rows)

    def log(self, text: str) -> None:
        """All that the search said so far."""
        self.tracker.text("log.txt", text)

    def numbers(self, event: PieceEvent) -> None:
        """What a piece reports while it runs, at the step among its numbers: a model's training to the model's own run,
        else as metrics `<stage>/<number>/<piece>`, so that MLflow shows the pieces side by side."""
        if event.stage == RECOVER:
            self.models.numbers(event)
            return
        piece = plain(event.label.replace(" ", "_"))
        if self._live.setdefault(f"{event.stage} {piece}", Live()).takes(event):
            numbers = {key: value for key, value in event.numbers.items() if key != "step"}
            values = {f"{event.stage}/{key}/{piece}": value for key, value in numbers.items()}
            self.tracker.metrics(values, step=int(event.numbers["step"]))

    def best(self, best: Best) -> None:
        """The best architecture so far, as metrics at its number among those that were."""
        self.tracker.metrics(best.metrics(), step=self._num_best)
        self._num_best += 1

    def rounds(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        """What each round of the pool brought that was not told yet."""
        for row in rounds[self._num_rounds :]:
            figures = {name: row[name] for name in ("best_kl_nats", "gain_nats", "prediction_error")}
            self.tracker.metrics({f"assemble/{name}": value for name, value in figures.items()}, step=row["round"])
        self._num_rounds = len(rounds)

    def solution(self, solution: Mapping[str, Any]) -> None:
        """The kept architecture."""
        self.tracker.json("solution.json", solution)

    def evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """The figures of child, parent and baselines, and their table as the run's description."""
        self.tracker.json("evaluation.json", evaluation)
        shown = Evaluation.of(evaluation)
        self.tracker.tags({"mlflow.note.content": evaluation_markdown(shown)})
        if shown.prompts:
            self.tracker.text("prompts.txt", prompts_text(shown))
        for name in (n for n in ("parent", "child", *BASELINES) if n in evaluation):
            for group, values in figure_metrics(name, evaluation[name]):
                self.tracker.metrics({f"{group}/{key}": value for key, value in values.items()})
        for row in shown.tasks:
            name = f"{plain(row.task)}/{plain(row.metric)}"
            self.tracker.metrics({f"parent/{name}": row.parent, f"child/{name}": row.child})
        if found := shown.sensitivity:
            figures = {"parent": found.parent, "child": found.child}
            self.tracker.metrics({f"{name}/prompt_sensitivity": value for name, (value, _) in figures.items()})
        self.models.evaluation(evaluation)

    def report(self) -> None:
        """Every picture that the workspace has the data for, and the page that shows them all."""
        drawn = dict(all_pictures(self.place))
        for name, picture in drawn.items():
            self.tracker.figure(f"pictures/{name}.png", picture.figure)
        self.tracker.text("report.html", page_of(self.place, drawn))


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
