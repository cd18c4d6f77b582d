"""How tracking entries reach MLflow: which call each kind becomes, what counts as down, and what is never sent."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.cluster.tracking_model import ServedModel, send_model
from inlay.cluster.urls import redacted

# Read by mlflow when it is imported: a dead tracker must not stall a search, and nothing is reported to its makers.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Not BAD_REQUEST, which is what MLflow makes of a lost connection to its database and of two that write at once.
_REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
_REF_TAG = "inlay.run"
SEARCH = "search"
"""The ref of the run that all others stand below."""
# A search is model development in MLflow's own words.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_METRICS_A_CALL = 500


class TrackerDownError(Exception):
    """The tracker did not answer, or answered that it cannot now."""


@dataclass(frozen=True)
class Entry:
    """One thing to tell the tracker about the run `ref`."""

    ref: str
    kind: str
    values: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Sender:
    """Turns entries into MLflow calls; used by one thread, except `run_ids`."""

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        self.experiment_id = ""
        self._uri = uri
        self._experiment = experiment
        self._state_path = folder / "runs.json"
        self._client: Any = None
        self._made: set[str] = set()
        self._resumed: set[str] = set()
        self._told: dict[tuple[str, str], set[tuple[int, str]]] = {}
        self._warnings: list[str] = []
        self._place = f"{redacted(uri)} {experiment}"

    def run_ids(self) -> dict[str, str]:
        """Return the MLflow run ids of this workspace on this tracker and experiment by ref."""
        return dict(self._state().get(self._place, {}))

    def take_warnings(self) -> list[str]:
        """Return what the tracker refused since the last call, as sentences."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def answers(self) -> bool:
        """Tell whether the tracker itself is there, whatever it makes of an entry."""
        try:
            self._connect()
            return self._client.get_experiment(self.experiment_id) is not None
        except Exception:  # the clients of its stores have errors of their own
            return False

    def send(self, entries: list[Entry]) -> int:
        """Send the first entries and return how many those were; raises TrackerDownError when none could be."""
        entry = entries[0]
        count = 1
        try:
            self._connect()
            if entry.kind == "run":
                self._make_run(entry)
            elif entry.kind == "metrics":
                count = self._send_metrics(entries)
            else:
                getattr(self, f"_send_{entry.kind}")(self._run_id(entry.ref), **entry.values)
        except Exception as error:
            if not _is_refusal(error):
                raise TrackerDownError(_first_line(error)) from error
            self._warnings.append(f"the tracker refused {entry.kind} of the run `{entry.ref}`: {_first_line(error)}")
        return count

    def _connect(self) -> None:
        if self._client is not None:
            return
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            with contextlib.suppress(
                _mlflow_error()
            ):  # another search made it at the same moment, or the next call fails
                client.create_experiment(
                    self._experiment, artifact_location=_artifact_location(self._uri), tags=_EXPERIMENT_TAGS
                )
            experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            raise TrackerDownError(f"the experiment {self._experiment} could not be made")
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        self.experiment_id = experiment.experiment_id
        self._client = client

    def _make_run(self, entry: Entry) -> None:
        values = entry.values
        tags = {**values["tags"], _REF_TAG: entry.ref}
        identifier = self.run_ids().get(entry.ref) or values["resume"]
        is_new, is_below = False, values["parent"] is not None
        if is_below:
            tags["mlflow.parentRunId"] = self._run_id(values["parent"])
        if identifier is None or not self._is_there(identifier):
            key = values.get("creation") or self._creation_key(entry.ref)
            made = self._client.search_runs([self.experiment_id], f"tags.`inlay.creation` = '{key}'", max_results=1)
            tags["inlay.creation"] = key
            run = made[0] if made else self._client.create_run(self.experiment_id, values["at"], tags, values["name"])
            identifier = run.info.run_id
            is_new = not made
        if is_new:
            self._made.add(identifier)
        else:
            # People may have given the search another name; what a run below it is called is ours to say.
            self._client.update_run(identifier, status="RUNNING", name=values["name"] if is_below else None)
        if identifier not in self._made:
            self._resumed.add(identifier)
        self._change_state(entry.ref, identifier)
        from mlflow.entities import RunTag

        self._client.log_batch(identifier, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def _send_metrics(self, entries: list[Entry]) -> int:
        """Send all metrics that follow each other, a call for each run; one of them that is refused harms no other."""
        from mlflow.entities import Metric

        metrics: dict[str, list[Metric]] = {}
        count = points = 0
        for entry in entries:
            if entry.kind != "metrics" or points > _METRICS_A_CALL:
                break
            run_id, step, at = self._run_id(entry.ref), entry.values["step"], entry.values["at"]
            found = [
                Metric(name, value, at, step)
                for name, value in entry.values["values"].items()
                if not self._was_told(run_id, name, value, step)
            ]
            metrics.setdefault(run_id, []).extend(found)
            count, points = count + 1, points + len(found)
        try:
            for run_id, found in metrics.items():
                if found:
                    self._client.log_batch(run_id, metrics=found)
        except _mlflow_error() as error:
            if count == 1 or not _is_refusal(error):
                raise
            return self._send_metrics(entries[:1])
        return count

    def _was_told(self, run_id: str, name: str, value: float, step: int) -> bool:
        """Tell whether a run that goes on has this very point already: what is computed again is not shown twice."""
        if run_id not in self._resumed:
            return False
        if (run_id, name) not in self._told:
            history = self._client.get_metric_history(run_id, name)
            self._told[run_id, name] = {(point.step, repr(float(point.value))) for point in history}
        return (step, repr(float(value))) in self._told[run_id, name]

    def _send_params(self, run_id: str, values: dict[str, str]) -> None:
        """Log new params; MLflow never changes one, so a resumed search that changed a setting says so by a tag."""
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(run_id).data.params
        new = [Param(name, value[:6000]) for name, value in values.items() if name not in there]
        changed = [
            RunTag(f"changed.{name}", value)
            for name, value in values.items()
            if name in there and there[name] != value[:6000]
        ]
        for start in range(0, len(new), 100):
            self._client.log_batch(run_id, params=new[start : start + 100])
        if changed:
            self._client.log_batch(run_id, tags=changed[:100])

    def _send_tags(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def _send_text(self, run_id: str, path: str, content: str) -> None:
        self._client.log_text(run_id, content, path)

    def _send_bytes(self, run_id: str, path: str, content: str) -> None:
        with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(base64.b64decode(content))
            self._client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)

    def _send_table(self, run_id: str, path: str, content: str) -> None:
        """Write a table as MLflow's own `log_table` does, but whole, since that one appends."""
        self._client.log_text(run_id, content, path)
        tags = self._client.get_run(run_id).data.tags
        known = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        if {"path": path, "type": "table"} not in known:
            self._client.set_tag(
                run_id, "mlflow.loggedArtifacts", json.dumps([*known, {"path": path, "type": "table"}])
            )

    def _send_file(self, run_id: str, local: str, folder: str) -> None:
        if Path(local).is_file():
            self._client.log_artifact(run_id, local, folder or None)
        else:
            self._warnings.append(f"{local} was gone before it could be sent to the tracker")

    def _send_dataset(self, run_id: str, name: str, digest: str, profile: dict[str, Any], source: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])])

    def _send_model(self, run_id: str, **values: Any) -> None:
        run_ids = list(dict.fromkeys((run_id, self._run_id(SEARCH))))
        send_model(self._client, self.experiment_id, run_ids, ServedModel(**values), self._warnings.append)

    def _send_name(self, run_id: str, name: str) -> None:
        self._client.update_run(run_id, name=name)

    def _send_end(self, run_id: str, status: str, at: int) -> None:
        self._client.set_terminated(run_id, status, at)

    def _run_id(self, ref: str) -> str:
        identifier = self.run_ids().get(ref)
        if identifier is None:
            raise ValueError(f"the run `{ref}` was never made")
        return identifier

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _state(self) -> dict[str, dict[str, str]]:
        try:
            state: dict[str, dict[str, str]] = json.loads(self._state_path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    def _creation_key(self, ref: str) -> str:
        """Return a name for the run to be made, kept before it is made: after a kill in between, it is found again.

        A run that was deleted in MLflow is not found by it, and so is made anew.
        """
        key = self.run_ids().get(f"{ref} creation")
        if key is None:
            key = uuid.uuid4().hex
            self._change_state(f"{ref} creation", key)
        return key

    def _change_state(self, name: str, value: str) -> None:
        state = self._state()
        state.setdefault(self._place, {})[name] = value
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._state_path.with_suffix(".new")
        beside.write_text(json.dumps(state, indent=1, sort_keys=True))
        beside.replace(self._state_path)


def prepare_environment() -> None:
    """Set what mlflow reads when it is imported, but for what the user has set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def redacted_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return an entry's values with every text in them redacted."""
    return {name: _redact(value) for name, value in values.items()}


def _redact(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return redacted_values(value)
    return value


def _artifact_location(uri: str) -> str | None:
    """Return where artifacts go: beside an sqlite file, else where the server keeps them."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    return None


def _is_refusal(error: Exception) -> bool:
    """Tell an entry that MLflow will never take from a tracker that is down."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSED
    return isinstance(error, ValueError | TypeError | KeyError)


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return redacted(lines[0][:300]) if lines else type(error).__name__
