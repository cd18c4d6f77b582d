"""run.json: what a search is, how far it came and what it took. Nothing else writes it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from inlay.cluster.cost import Cost
from inlay.nas.job import Job
from inlay.nas.workspace import Workspace

NAME = "run.json"


class RunJson:
    """The file of one search, written at its start, after every stage and at its end.

    A search that goes on where it stopped adds to its stages' times and costs; another search of the workspace begins
    anew.
    """

    def __init__(self, job: Job, place: Workspace) -> None:
        self._place = place
        self._before = place.find_json(NAME) or {}
        digest = job.search_digest()
        earlier = self._before if self._before.get("job_digest") == digest else {}
        self._earlier: dict[str, dict[str, Any]] = {stage["name"]: stage for stage in earlier.get("stages", ())}
        self._stages = dict(self._earlier)
        self._own: dict[str, Any] = {
            "job_digest": digest,
            "mlflow_run_id": earlier.get("mlflow_run_id"),
            "mlflow_creation": earlier.get("mlflow_creation") or uuid.uuid4().hex,
            "begun": earlier.get("begun") or time.time(),
        }

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run of this search, as far as it is known."""
        known: str | None = self._own["mlflow_run_id"]
        return known

    @property
    def mlflow_creation(self) -> str:
        """A name for the MLflow run, kept before that is made: wherever the search goes on, the run is found by it."""
        return str(self._own["mlflow_creation"])

    @property
    def begun(self) -> float:
        """When the search began, in seconds since 1970; it may have been stopped since."""
        return float(self._own["begun"])

    def stage(
        self, name: str, seconds: float, peak_bytes: int, pieces: int, cost: Cost, metrics: Mapping[str, float]
    ) -> dict[str, Any]:
        """Takes in what a stage took in this run so far, and gives the sum with what it took in earlier ones."""
        before = self._earlier.get(name, {})
        spent = self.cost(name, cost)
        self._stages[name] = {
            "name": name,
            "seconds": before.get("seconds", 0.0) + seconds,
            "peak_bytes": max(before.get("peak_bytes", 0), peak_bytes),
            "pieces": pieces,
            "cpu_hours": spent.cpu_hours,
            "gpu_hours": spent.gpu_hours,
            **metrics,
        }
        return self._stages[name]

    def cost(self, name: str, now: Cost) -> Cost:
        """What a stage has cost, where it was `now` in this run."""
        return cost_of(self._earlier.get(name, {})) + now

    def whole_cost(self) -> Cost:
        """What all stages have cost so far."""
        return sum(map(cost_of, self._stages.values()), Cost())

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds what the search came to."""
        self._own.update(values)

    def write(self, mlflow_run_id: str | None) -> None:
        """Writes how far the search is; the figures of an earlier search stay until this one has its own."""
        self._place.write_json(NAME, {**self._before, **self._standing(mlflow_run_id), "finished": None})

    def finish(self, mlflow_run_id: str | None, fingerprint: str) -> dict[str, Any]:
        """Writes the search as finished, as far as a run of this fingerprint goes; the file's contents."""
        run = {**self._standing(mlflow_run_id), "finished": fingerprint}
        self._place.write_json(NAME, run)
        return run

    def _standing(self, mlflow_run_id: str | None) -> dict[str, Any]:
        # The tracker makes its run in its own time.
        self._own["mlflow_run_id"] = mlflow_run_id or self.mlflow_run_id
        return {**self._own, "stages": list(self._stages.values())}


def cost_of(stage: Mapping[str, Any]) -> Cost:
    """What a stage of run.json has cost."""
    return Cost(stage.get("cpu_hours", 0.0), stage.get("gpu_hours", 0.0))
