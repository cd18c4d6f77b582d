"""What a run leaves behind for people: run.json, tables, pictures, and the MLflow run that shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.cluster.events import PieceEvent
from inlay.cluster.tracking import Tracker, spool_folder
from inlay.nas.families import Parent
from inlay.nas.job import Job
from inlay.nas.report.figures import evaluation_markdown
from inlay.nas.report.progress import Reporter
from inlay.nas.report.records import Evaluation
from inlay.nas.stages.text import TEXTS, Texts
from inlay.nas.workspace import Workspace

if TYPE_CHECKING:
    from inlay.nas.stages.assemble import Assembled
    from inlay.nas.stages.evaluate import Recovered
    from inlay.nas.stages.search import Search
    from inlay.nas.stages.solving import Tables


LIVE_POINTS = 500
"""Of one piece's numbers, at most, that are told while it runs."""


@dataclass
class Told:
    """What a stage says when it ends: words for people, metrics for the tracker."""

    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class SearchRecord:
    """The one who writes down what happens; the driver alone talks to MLflow."""

    def __init__(self, job: Job, place: Workspace, parent: Parent, reporter: Reporter) -> None:
        self.job, self.place, self.parent, self.reporter = job, place, parent, reporter
        self.run: dict[str, Any] = {"stages": []}
        self._series: dict[str, list[str]] = {}
        self._live: dict[str, _Live] = {}
        # A run a search: the same job continues its run wherever it computes, another job gets its own.
        spool = spool_folder(place.store) / job.search_digest()[:16]
        self.tracker = Tracker(job.tracking.uri, job.tracking.experiment, reporter.warning, spool=spool)

    def start(self) -> None:
        """Starts the search's MLflow run, or continues the one that this job has from before."""
        before = self.place.find_json("run.json") or {}
        name = self.job.file.stem if self.job.file else "search"
        digest = self.job.search_digest()
        tags = {"inlay.parent": self.job.parent, "inlay.job": digest, "inlay.workspace": self.place.url}
        resumed = before.get("mlflow_run_id") if before.get("job_digest") == digest else None
        self.run |= {"mlflow_run_id": self.tracker.start(name, tags, resume_run_id=resumed), "job_digest": digest}
        self.place.write_json("run.json", {**before, **self.run, "finished": None})
        self.tracker.params(flatten(self.job.to_dict()))
        self.tracker.json("job.json", self.job.to_dict())

    def end(self, error: BaseException | None) -> None:
        """Ends the MLflow run: finished, failed, or killed."""
        status = (
            "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        )
        self.tracker.end(status)

    def texts(self, texts: Texts) -> None:
        """The datasets as inputs of the run."""
        for name in TEXTS:
            ids = getattr(texts, name)
            source = self.job.data.distill if name in ("distill", "recover", "held_out") else self.job.data.validate
            profile = {"sequences": ids.shape[0], "sequence_length": ids.shape[1]}
            self.tracker.dataset(name, ids.digest, profile, self.job.resolve(source.path))

    @contextmanager
    def stage(self, name: str, search: Search) -> Iterator[Told]:
        """Times a stage; its records' largest memory and number of pieces are stored and shown."""
        self.reporter.stage_started(name)
        search.records.clear()
        search.scratch_peak_bytes = 0
        told = Told()
        start = time.monotonic()
        yield told
        seconds = time.monotonic() - start
        peak = max([search.scratch_peak_bytes, *(record.peak_bytes for record in search.records.values())])
        entry = {"name": name, "seconds": seconds, "peak_bytes": peak, "pieces": len(search.records), **told.metrics}
        self.run["stages"].append(entry)
        self.reporter.stage_finished(name, seconds, peak or None, told.note)
        self.tracker.metrics(
            {f"{name}.seconds": seconds, f"{name}.peak_bytes": peak}
            | {f"{name}.{key}": value for key, value in told.metrics.items()}
        )

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

    def _metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        self.tracker.metrics({f"{series}.{key}": value for key, value in values.items()}, step=step)

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A table of the workspace, and the same as an artifact."""
        self.place.write_table(name, rows)
        self.tracker.table(f"tables/{name}.json", rows)

    def assembled(self, assembled: Assembled, tables: Tables) -> None:
        """Pool, kept solution, corrected scores and the pictures of them."""
        from inlay.nas.stages.pipeline import pool_rows, solution_of

        self.table("pool", pool_rows(assembled, tables, self.job))
        self.place.write_json("solution.json", solution_of(assembled, tables, self.job))
        corrections = [
            {"layer": layer, "attention": block[0], "ffn": block[1], "factor": factor}
            for (layer, block), factor in sorted(assembled.scores.factors.items())
        ]
        self.place.write_json("tables/corrections.json", corrections)
        self.tracker.json("solution.json", solution_of(assembled, tables, self.job))
        for row in assembled.rounds:
            figures = {name: row[name] for name in ("best_kl_nats", "gain_nats", "prediction_error")}
            self.tracker.metrics({f"assemble.{name}": value for name, value in figures.items()}, step=row["round"])

    def curves(self, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Recovery losses by optimizer step; the tracker gets those that it was not told while they came."""
        rows = [{"model": name, "point": n, **point} for name, curve in curves.items() for n, point in enumerate(curve)]
        self.table("recovery", rows)
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
        self.tracker.tags({"mlflow.note.content": evaluation_markdown(Evaluation.of(evaluation))})
        for name in ("parent", "child", "uniform", "depth"):
            figures = {
                k: v for k, v in evaluation[name].items() if isinstance(v, int | float) and not isinstance(v, bool)
            }
            self.tracker.metrics({f"{name}.{key}": value for key, value in figures.items()})

    def finish(
        self,
        fingerprint: str,
        evaluation: Mapping[str, Any],
        lost: Sequence[tuple[int, str, str]],
        models: Mapping[str, Recovered],
    ) -> dict[str, Any]:
        """Writes run.json as finished, and the pictures."""
        self.run |= {
            "finished": fingerprint,
            "failed_variants": [{"layer": layer, "variant": label, "reason": why} for layer, label, why in lost],
            "models": {name: model.blob for name, model in models.items()},
            "evaluation": evaluation,
            "job": self.job.to_dict(),
            "folder": str(self.job.folder),
            "chosen": evaluation["chosen"],
            "mlflow_run_id": self.tracker.run_id(),
        }
        self._pictures()
        self.place.write_json("run.json", self.run)
        return self.run

    def _pictures(self) -> None:
        from inlay.nas.report.pictures import all_pictures

        self.place.write_json("run.json", {**self.run, "finished": None})
        for name, figure in all_pictures(self.place):
            self.tracker.figure(f"pictures/{name}.png", figure)


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
