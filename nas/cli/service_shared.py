"""What the verbs of the cluster share: options, the job server, and user mistakes as user errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.nas.errors import JobFailedError, UserError

if TYPE_CHECKING:
    from inlay.cluster.jobs import JobInfo, JobServer

AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Job server; default RAY_API_SERVER_ADDRESS, else `inlay up`'s."),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Allow http without a token to a server beyond this machine.")
]
JobIdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id that `inlay submit` printed.")]
FolderOption = Annotated[
    str | None,
    typer.Option("--folder", help="Folder of the services; default INLAY_SERVICES, else ~/.local/state/inlay."),
]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the ValueErrors of the cluster room, which are the user's mistakes, into user errors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def job_server(address: str | None, insecure: bool) -> Iterator[JobServer]:
    """Give the job server, with its complaints as user errors."""
    from inlay.cluster.jobs import JobServer

    with user_errors():
        yield JobServer(address, allow_insecure=insecure)


def explained(server: JobServer, job: JobInfo) -> JobInfo:
    """Return the job with a message in our words: what it waits for, or the sentence that it failed with."""
    from dataclasses import replace

    if job.state == "PENDING":
        return replace(job, message=server.waits_for(job))
    if job.state == "FAILED":
        lines = [line.strip() for line in server.logs(job.job_id).splitlines()]
        said = next((line.removeprefix("inlay: ") for line in reversed(lines) if line.startswith("inlay: ")), None)
        return replace(job, message=said or job.message)
    return job


def check_succeeded(job: JobInfo) -> None:
    """Raise JobFailedError, exit code 4, for a job that ended in another way; `job` is an explained one."""
    if job.state != "SUCCEEDED":
        raise JobFailedError(f"the job `{job.job_id}` is {job.state}{f': {job.message}' if job.message else ''}")


def job_values(job: JobInfo) -> dict[str, Any]:
    """Return a job as JSON-able values."""
    return {
        "job_id": job.job_id,
        "state": job.state,
        "message": job.message,
        "exit_code": job.exit_code,
        "submitted": show_time(job.submitted),
        "ended": show_time(job.ended),
        "workspace": job.details.get("workspace"),
        "owner": job.owner or None,
        "tags": job.tags,
    }


def show_time(seconds: float | None) -> str | None:
    """`2026-01-31 12:00:00`, local time."""
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
