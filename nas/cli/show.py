"""`inlay show`: what was submitted, the job file among it, word for word."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, JobIdArgument, job_server


def show_command(
    job_id: JobIdArgument,
    job_text: Annotated[bool, typer.Option("--job", help="Print the job file as it was submitted.")] = False,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what was submitted: by whom, from which folder, for which workspace, with which versions; and the job."""
    from inlay.nas.client import submitted_values

    with job_server(address, insecure) as server:
        job = server.job(job_id)
    given = submitted_values(job)
    values = {
        "job_id": job.job_id,
        "owner": job.owner or None,
        "folder": given["folder"],
        "workspace": given["workspace"],
        "versions": given["versions"],
        "tags": job.tags,
        "job": given["job"],
    }
    if as_json:
        print_json(values)
    elif job_text:
        sys.stdout.write(given["job"])
    else:
        print(job.job_id)
        rows = {
            "owner": job.owner,
            "folder": given["folder"],
            "workspace": given["workspace"],
            "versions": ", ".join(f"{name} {version}" for name, version in given["versions"].items()),
            "tags": ", ".join(f"{name}={value}" for name, value in sorted(job.tags.items())),
            "job": f"inlay show {job.job_id} --job",
        }
        for name, value in rows.items():
            if value:
                print(f"  {name:<10} {value}")
