"""The MLflow page of a submitted job, looked up over MLflow's REST interface without importing mlflow."""

from __future__ import annotations

import os

from inlay.cluster.errors import ClusterError
from inlay.cluster.http import mlflow_authorization, request_json
from inlay.cluster.services import find_services, services_folder
from inlay.cluster.tracking import JOB_TAG, run_page
from inlay.cluster.urls import redacted


def job_page(uri: str, experiment: str, job_id: str) -> str | None:
    """Return the page of a job's run on the MLflow server at `uri`, None where there is none or it does not answer.

    `uri` is what the submitter noted: only a server that this side knows itself is asked.
    """
    if not uri.startswith("http") or uri.rstrip("/") not in _known_servers():
        return None
    interface = f"{uri.rstrip('/')}/api/2.0/mlflow"
    try:
        header = mlflow_authorization(uri)
        named = f"{interface}/experiments/get-by-name?experiment_name={_quoted(experiment)}"
        found = request_json("GET", named, authorization=header)
        experiment_id = str(found["experiment"]["experiment_id"])
        query = {"experiment_ids": [experiment_id], "filter": f"tags.`{JOB_TAG}` = '{job_id}'", "max_results": 1}
        runs = request_json("POST", f"{interface}/runs/search", query, authorization=header).get("runs", [])
        return run_page(uri, experiment_id, runs[0]["info"]["run_id"]) if runs else None
    except (ClusterError, KeyError, TypeError):
        return None


def _known_servers() -> set[str]:
    """Return MLFLOW_TRACKING_URI and the server of `inlay up`."""
    started = find_services(services_folder()).mlflow
    named = [os.environ.get("MLFLOW_TRACKING_URI", ""), started.url if started is not None else ""]
    return {redacted(uri).rstrip("/") for uri in named if uri}


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")
