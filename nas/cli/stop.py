"""`inlay stop`: ends a job, or all that have a tag; their workspaces stay resumable."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, job_server, job_values
from inlay.nas.errors import InlayError, UserError

if TYPE_CHECKING:
    from inlay.cluster.job_info import JobInfo


def stop_command(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="The id that `inlay submit` printed.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="NAME=VALUE", help="Instead of an ID: all jobs that run or wait, with it."),
    ] = None,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a job; what is finished is kept, and the same job goes on from there when it is submitted again."""
    from inlay.cluster.ids import parse_tags
    from inlay.nas.client import still_goes, stop_jobs

    if (job_id is None) == (not tag):
        raise UserError("name one job by its ID, or several by --tag NAME=VALUE; `inlay list` shows both")
    with job_server(address, insecure) as server:
        tags = parse_tags(tag or [])
        names = [job_id] if job_id is not None else [job.job_id for job in server.jobs(tags) if not job.is_over]
        jobs = stop_jobs(server, names)
    if as_json:
        values = [job_values(job) for job, _ in jobs]
        print_json(values if job_id is None else values[0])
    else:
        for job, stopped in jobs:
            _tell(job, stopped)
        if not jobs:
            print(f"inlay: no job with {' '.join(tag or [])} runs or waits", file=sys.stderr)
    if going := [job for job, _ in jobs if still_goes(job)]:
        told = ", ".join(f"`{job.job_id}` ({job.state})" for job in going)
        raise InlayError(f"asked to stop and not ended yet: {told}; try `inlay status {going[0].job_id}`")


def _tell(job: JobInfo, stopped: bool) -> None:
    if job.state == "PENDING":
        print(f"{job.job_id} had not started and will not: it is STOPPED when its turn comes")
    elif not stopped:
        print(f"inlay: the job `{job.job_id}` was over already ({job.state})", file=sys.stderr)
    elif job.is_over:
        print(f"{job.job_id} is {job.state}; its workspace can be resumed: {job.details.get('workspace', '')}")
