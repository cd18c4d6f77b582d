"""`inlay submit`: the same job file, on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from inlay.nas.cli.output import JobArgument, JsonOption, print_json
from inlay.nas.cli.service_shared import (
    AddressOption,
    InsecureOption,
    check_succeeded,
    explained,
    job_server,
    job_values,
)
from inlay.nas.errors import UserError


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
    from inlay.cluster.ids import new_job_id, parse_job_id, parse_tags
    from inlay.nas.cli.following import follow
    from inlay.nas.driver import submission
    from inlay.nas.job import Job
    from inlay.nas.loop.resources import resources_of

    loaded = Job.load(job)
    with job_server(address, insecure) as server:
        identifier = parse_job_id(job_id) if job_id is not None else new_job_id(Path(job).stem)
        tags = parse_tags(tag or [])
        order = submission(loaded, workspace, identifier, tags)
        theirs = server.versions()["ray"]
        if theirs != order.details["ray"]:
            raise UserError(
                f"the cluster at {server.url} has Ray {theirs}, this side has {order.details['ray']}; use the same"
            )
        server.check_share(resources_of(loaded))
        try:
            server.check_together(resources_of(loaded), loaded.recover.workers)
        except ValueError as error:
            raise UserError(f"recover.workers: {error}; lower it") from error
        server.submit(identifier, order.entrypoint, order.environment, tags, order.details)
        if not as_json:
            print(identifier, flush=True)
            print(
                f"inlay: `inlay status {identifier}` shows it, `inlay stop {identifier}` ends it",
                file=sys.stderr,
            )
        if wait:
            follow(server, identifier, sys.stderr)
        state = explained(server, server.job(identifier))
        if as_json:
            print_json(job_values(state))
        if wait:
            check_succeeded(state)
