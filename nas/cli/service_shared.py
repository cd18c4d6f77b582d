"""What the verbs of the cluster share: options, the job server, and user mistakes as user errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.nas.cli.output import print_json
from inlay.nas.client import user_errors

if TYPE_CHECKING:
    from inlay.cluster.job_info import JobInfo
    from inlay.cluster.jobs import JobServer
    from inlay.nas.client import JobHandle

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
def job_server(address: str | None, insecure: bool) -> Iterator[JobServer]:
    """Give the job server, with its complaints as user errors."""
    from inlay.cluster.jobs import JobServer

    with user_errors():
        yield JobServer(address, allow_insecure=insecure)


def tell_submitted(handle: JobHandle, *, as_json: bool, wait: bool = False) -> None:
    """Print the id of what was just submitted, or its JSON, and follow it where that is asked for."""
    from inlay.nas.cli.following import follow
    from inlay.nas.client import check_succeeded

    for note in handle.notes:
        print(f"inlay: {note}", file=sys.stderr)
    name = handle.job_id
    if not as_json:
        print(name, flush=True)
        print(f"inlay: `inlay status {name}` shows it, `inlay stop {name}` ends it", file=sys.stderr)
    if wait:
        with user_errors():
            follow(handle.server, name, sys.stderr)
    state = handle.status()
    if as_json:
        print_json(job_values(state))
    if wait:
        check_succeeded(state)


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
        "priority": job.priority or None,
        "before": job.before,
        "tags": job.tags,
    }


def show_time(seconds: float | None) -> str | None:
    """`2026-01-31 12:00:00`, local time."""
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
