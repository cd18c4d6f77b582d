"""The MLflow page of a submitted job, looked up, and its end told, over MLflow's REST interface without
importing mlflow."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from inlay.cluster.errors import ClusterError
from inlay.cluster.http import mlflow_authorization, request_json
from inlay.cluster.ids import parse_listed_id
from inlay.cluster.services import find_services, services_folder
from inlay.cluster.tracking import JOB_TAG, run_page
from inlay.cluster.urls import redacted


def job_page(uri: str, experiment: str, job_id: str) -> str | None:
    """Return the page of a job's run on the MLflow server at `uri`, None where there is none or it does not answer.

    `uri` is what the submitter noted: only a server that this side knows itself is asked.
    """
    if not uri.startswith("http") or uri.rstrip("/") not in _known_servers():
        return None
    try:
        run = _find_run(uri, experiment, job_id)
        return run_page(uri, str(run["experiment_id"]), str(run["run_id"])) if run is not None else None
    except (ClusterError, KeyError, TypeError):
        return None


def end_job_run(uri: str, experiment: str, job_id: str) -> None:
    """Say of a job's run on the MLflow server at `uri`, and of those below it, that they were killed, where they are
    still told to run.

    A job that is ended by force says nothing itself. Only a server that this side knows is asked, and one that does
    not answer is left.
    """
    if not uri.startswith("http") or uri.rstrip("/") not in _known_servers():
        return
    with suppress(ClusterError, KeyError, TypeError):
        run = _find_run(uri, experiment, job_id)
        if run is None:
            return
        below = f"tags.`mlflow.parentRunId` = '{run['run_id']}' and attributes.status = 'RUNNING'"
        for each in (run, *_search(uri, str(run["experiment_id"]), below, 1000)):
            if each["status"] == "RUNNING":
                change = {"run_id": each["run_id"], "status": "KILLED", "end_time": int(time.time() * 1000)}
                request_json("POST", f"{_interface(uri)}/runs/update", change, authorization=mlflow_authorization(uri))


def _find_run(uri: str, experiment: str, job_id: str) -> dict[str, Any] | None:
    named = f"{_interface(uri)}/experiments/get-by-name?experiment_name={quote(experiment, safe='')}"
    found = request_json("GET", named, authorization=mlflow_authorization(uri))
    of_job = f"tags.`{JOB_TAG}` = '{parse_listed_id(job_id)}'"
    return next(iter(_search(uri, str(found["experiment"]["experiment_id"]), of_job, 1)), None)


def _search(uri: str, experiment_id: str, condition: str, most: int) -> list[dict[str, Any]]:
    query = {"experiment_ids": [experiment_id], "filter": condition, "max_results": most}
    found = request_json("POST", f"{_interface(uri)}/runs/search", query, authorization=mlflow_authorization(uri))
    return [dict(run["info"]) for run in found.get("runs", [])]


def _interface(uri: str) -> str:
    return f"{uri.rstrip('/')}/api/2.0/mlflow"


def _known_servers() -> set[str]:
    """Return MLFLOW_TRACKING_URI and the server of `inlay up`."""
    started = find_services(services_folder()).mlflow
    named = [os.environ.get("MLFLOW_TRACKING_URI", ""), started.url if started is not None else ""]
    return {redacted(uri).rstrip("/") for uri in named if uri}
