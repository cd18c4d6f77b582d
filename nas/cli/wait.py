"""`inlay wait`: until a job ends, for scripts that submit first and look later."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import (
    AddressOption,
    InsecureOption,
    JobIdArgument,
    job_server,
    job_values,
)
from inlay.nas.client import check_succeeded, explained
from inlay.nas.errors import InlayError


def wait_command(
    job_id: JobIdArgument,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Wait no longer: 90s, 30min, 2h; exit code 1 then.")
    ] = None,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Wait for the end of a job; exit code 4 unless it succeeded."""
    from inlay.nas.cli.following import left_alone
    from inlay.nas.cli.solve import seconds_of

    seconds = None if timeout is None else seconds_of(timeout, "--timeout")
    with job_server(address, insecure) as server, left_alone(job_id):
        job = explained(server, server.wait(job_id, seconds))
    if as_json:
        print_json(job_values(job))
    if not job.is_over:
        raise InlayError(f"the job `{job_id}` is still {job.state} after {timeout}; it goes on")
    check_succeeded(job)
    if not as_json:
        print(f"{job_id} is {job.state}; its workspace: {job.details.get('workspace', '')}")
