"""`inlay submit`: the same job file, on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.nas.cli.output import JobArgument, JsonOption
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, tell_submitted


def submit_command(
    job: JobArgument,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="Folder or URL that all nodes share; default <job stem>.search."),
    ] = None,
    job_id: Annotated[str | None, typer.Option("--id", help="The job's id; default: its name and a number.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="May be given again.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job; exit code 4 when it fails.")] = False,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a job to a cluster; the file goes as text, nothing else is uploaded."""
    from inlay.cluster.ids import parse_tags
    from inlay.nas.client import Client, user_errors
    from inlay.nas.job import Job

    loaded = Job.load(job)
    with user_errors():
        tags = parse_tags(tag or [])
    handle = Client(address, allow_insecure=insecure).submit(loaded, workspace=workspace, job_id=job_id, tags=tags)
    tell_submitted(handle, as_json=as_json, wait=wait)
