"""`inlay resubmit`: the same job again, without its file."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, JobIdArgument, tell_submitted


def resubmit_command(
    job_id: JobIdArgument,
    new_id: Annotated[
        str | None, typer.Option("--id", help="The new job's id; default: the old one's name and another number.")
    ] = None,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Submit the same job again, with its tags and on its workspace: it goes on where that one ended."""
    from inlay.nas.client import Client

    handle = Client(address, allow_insecure=insecure).resubmit(job_id, new_id=new_id)
    tell_submitted(handle, as_json=as_json)
