"""What a job's `cluster.on_end` is told: how the job ended, in one document without secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from inlay.cluster.errors import ClusterError
from inlay.cluster.on_end import VARIABLE, is_allowed, post_end
from inlay.cluster.urls import redacted
from inlay.nas.errors import InlayError, UserError
from inlay.nas.job import Job
from inlay.nas.stages.run import RunResult

SCHEMA = 1
SECONDS, STOPPED_SECONDS = 30.0, 2.0
"""How long a call may take; a job that is stopped is killed some seconds later."""
LONGEST_REASON = 500
FIGURES = ("kl_nats", "runtime_ratio", "runtime_seconds", "weights_bytes", "parameters")


def told_on_end(
    job: Job,
    workspace: str | Path | None,
    job_id: str | None,
    warning: Callable[[str], None],
    work: Callable[[], RunResult],
) -> RunResult:
    """Does the work of a job, tells the job's URL how it ended, and ends as the work did.

    Args:
        job: where it names no URL, nothing is told.
        workspace: of the job; None for its default one.
        job_id: of a submitted job.
        warning: is told in a sentence that the URL did not take the call, which changes nothing else.
        work: runs the job.

    Raises:
        UserError: this machine does not allow the URL; nothing was run.
    """
    url = job.cluster.on_end
    if url is None:
        return work()
    if not is_allowed(url):
        raise UserError(
            f"cluster.on_end: {url} is not called from here; whoever runs this machine or cluster can allow it by "
            f"{VARIABLE} in its environment, or leave it out"
        )
    own = {"schema": SCHEMA, "job_id": job_id, "workspace": str(workspace or job.default_workspace())}
    try:
        result = work()
    except BaseException as error:
        how = _failure(error)
        _tell(url, own | how, STOPPED_SECONDS if how["state"] == "STOPPED" else SECONDS, warning)
        raise
    _tell(url, own | {"workspace": result.workspace} | _success(result), SECONDS, warning)
    return result


def _tell(url: str, document: dict[str, Any], seconds: float, warning: Callable[[str], None]) -> None:
    told = {name: redacted(value) if isinstance(value, str) else value for name, value in document.items()}
    if (reason := post_end(url, told, seconds)) is not None:
        warning(f"cluster.on_end was not told that the job ended: {reason}")


def _success(result: RunResult) -> dict[str, Any]:
    chosen = str(result.evaluation.get("chosen", "child"))
    figures = result.evaluation.get(chosen, {})
    return {
        "state": "SUCCEEDED",
        "exit_code": 0,
        "chosen": chosen,
        "figures": {name: figures[name] for name in FIGURES if name in figures},
        "mlflow_run_id": result.run.get("mlflow_run_id"),
    }


def _failure(error: BaseException) -> dict[str, Any]:
    """The state by the job server's word, the exit code, and the sentence that the log ends with."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
        return {"state": "STOPPED", "exit_code": code, "reason": "it was stopped"}
    if isinstance(error, InlayError | ClusterError):
        code, reason = getattr(error, "exit_code", InlayError.exit_code), " ".join(str(error).split())
    else:
        code, reason = 1, f"unexpected error ({type(error).__name__})"
    return {"state": "FAILED", "exit_code": code, "reason": reason[:LONGEST_REASON]}
