"""`inlay logs`: what a job has written, also after it ended."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import (
    AddressOption,
    InsecureOption,
    JobIdArgument,
    job_server,
)
from inlay.nas.client import check_succeeded, explained


def logs_command(
    job_id: JobIdArgument,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends; exit code 4 when it fails.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, metavar="N", help="Only the last N lines of what is there.")
    ] = None,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print a job's log; works for running, ended, failed and stopped jobs."""
    from inlay.nas.cli.following import follow

    with job_server(address, insecure) as server:
        if follow_it and not as_json:
            follow(server, job_id, sys.stdout, tail)
            check_succeeded(explained(server, server.job(job_id)))
            return
        text = server.logs(job_id, tail)
        job = server.job(job_id) if not text else None
        if job is not None and job.state == "PENDING":
            print(f"inlay: the job `{job_id}` has not started: {server.waits_for(job)}", file=sys.stderr)
    if as_json:
        print_json({"job_id": job_id, "log": text})
    else:
        sys.stdout.write(text)
