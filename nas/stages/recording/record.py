"""The one whom the pipeline tells what happens; passes it on to run.json, the tables, the tracker and the display."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from inlay.cluster.cost import Cost
from inlay.cluster.errors import ClusterError, StoreError
from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.assemble import Assembled
from inlay.nas.stages.outcome import correction_rows, curve_rows, pool_rows, solution_of
from inlay.nas.stages.recording.log import SearchLog
from inlay.nas.stages.recording.logged_model import logged_model
from inlay.nas.stages.recording.run_json import RunJson
from inlay.nas.stages.recording.tracked import TrackedSearch
from inlay.nas.stages.recover import Recovered
from inlay.nas.tables.architecture import identify
from inlay.nas.workspace import Workspace

SECONDS_BETWEEN_WRITES = 60.0
"""Of run.json and the log, while a stage runs."""


@dataclass
class Told:
    """What a stage says when it ends: words for people, metrics for the tracker."""

    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class SearchRecord:
    """Keeps workspace, tracker and display in step; each of them is written in its own file."""

    def __init__(self, job: Job, place: Workspace, reporter: Reporter) -> None:
        self.job, self.place, self.reporter = job, place, reporter
        self.run_json = RunJson(job, place)
        self.tracked = TrackedSearch(job, place, reporter)
        self.log = SearchLog(job, place)
        reporter.log = self.log.add
        self.planned: Mapping[str, Mapping[str, float]] = {}
        """By stage, figures of the plan that are kept beside what it took."""

    def start(self) -> None:
        """The search starts, or goes on."""
        self.run_json.write(self.tracked.run_id())
        self.tracked.start(self.run_json.mlflow_run_id, self.run_json.mlflow_creation)
        self.tracked.describe()
        self.tracked.watch(self.run_json.begun)

    def end(self, error: BaseException | None) -> None:
        """The search ended, by an error if there is one."""
        if error is not None:
            self.log.add(f"ended by {type(error).__name__}: {error}")
        with suppress(ClusterError, OSError):  # the workspace may be gone, or another run's
            self.tracked.log(self.log.write())
        self.tracked.end(error)

    @contextmanager
    def stage(self, name: str, search: Search) -> Iterator[Told]:
        """Times a stage; its records' largest memory, number of pieces and what they held are stored and shown.

        They are stored while it runs too, so that a search whose driver is killed goes on with nearly all of it.
        """
        self.reporter.stage_started(name)
        search.records.clear()
        search.scratch_peak_bytes, search.spent = 0, Cost()
        told = Told()
        start = written = time.monotonic()

        def took() -> tuple[float, int, dict[str, Any]]:
            nonlocal written
            written = time.monotonic()
            seconds = written - start
            peak = max([search.scratch_peak_bytes, *(record.peak_bytes for record in search.records.values())])
            figures = {**self.planned.get(name, {}), **told.metrics}
            entry = self.run_json.stage(name, seconds, peak, len(search.records), search.spent, figures)
            self.run_json.write(self.tracked.run_id())
            self.log.write()
            return seconds, peak, entry

        def spent() -> None:
            self.reporter.spent(self.run_json.cost(name, search.spent))
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                with suppress(StoreError, OSError):  # a disk that is full now may have room at the stage's end
                    took()

        search.on_spent = spent
        self.reporter.spent(self.run_json.cost(name, search.spent))
        try:
            yield told
        except BaseException:
            with suppress(ClusterError, OSError):  # what ended the stage is what is told
                took()  # the search goes on with what the stage has done so far
            raise
        finally:
            search.on_spent = lambda: None
        seconds, peak, entry = took()
        self.reporter.stage_finished(name, seconds, peak or None, told.note)
        self.tracked.stage(entry)
        self.tracked.cost(self.run_json.whole_cost())

    def table(self, name: str, rows: Sequence[dict[str, Any]], told: Mapping[bytes, bytes] | None = None) -> None:
        """A table of the workspace, with `told` as its metadata, and the same as an artifact."""
        self.place.write_table(name, rows, told)
        self.tracked.table(name, rows)

    def assembled(self, assembled: Assembled, tables: Tables) -> None:
        """Pool, kept solution and corrected scores."""
        solution = solution_of(assembled, tables, self.job)
        rows = pool_rows(assembled, tables, self.job)
        self.table("pool", rows)
        self.place.write_json("solution.json", solution)
        self.place.write_json("tables/corrections.json", correction_rows(assembled))
        self.tracked.solution(solution)
        self.tracked.rounds(assembled.pool.rounds)
        architectures = {candidate.id: candidate.architecture for candidate in assembled.pool.candidates}
        self.tracked.models.pool(rows, architectures)

    def recovered(self, recovered: Recovered) -> None:
        """Recovery losses by model and optimizer step, and what the models are called now."""
        self.table("recovery", curve_rows(recovered.curves))
        models = self.tracked.models
        models.name({name: identify(model.architecture) for name, model in recovered.models.items()})
        models.curves({recovered.trained[name]: curve for name, curve in recovered.curves.items()})

    def evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """The figures of child, parent and baselines."""
        self.place.write_json("evaluation.json", evaluation)
        self.tracked.evaluation(evaluation)

    def exported(self, model: TrainedModel, evaluation: Mapping[str, Any], texts: Texts) -> None:
        """The child that was chosen and lies in the workspace."""
        creation, name = self.run_json.mlflow_creation, self.tracked.name
        served = logged_model(self.job, self.place, model, evaluation, texts, name, creation)
        self.tracked.models.served(model.architecture, served)

    def finish(
        self,
        fingerprint: str,
        evaluation: Mapping[str, Any],
        lost: Sequence[tuple[int, str, str]],
        models: Mapping[str, TrainedModel],
    ) -> dict[str, Any]:
        """Draws the pictures and writes run.json as finished; its contents."""
        self.run_json.add(
            {
                "failed_variants": [{"layer": layer, "variant": label, "reason": why} for layer, label, why in lost],
                "models": {name: {"blob": model.blob, "packed": model.packed} for name, model in models.items()},
                "evaluation": evaluation,
                "chosen": evaluation["chosen"],
                "job": self.job.to_dict(),
                "folder": str(self.job.folder),
            }
        )
        self.run_json.write(self.tracked.run_id())
        self.tracked.report()  # of what the workspace now says
        return self.run_json.finish(self.tracked.run_id(), fingerprint)
