"""`inlay list`: the jobs of a cluster."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json, print_rich
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, job_server, job_values, show_time


class State(StrEnum):
    """States of a job, as Ray names them."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


def list_command(
    state: Annotated[State | None, typer.Option("--state", case_sensitive=False, help="Only jobs in it.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="NAME[=VALUE]", help="Only jobs with it; may be given again: with all of them."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the newest N.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only jobs that this account submitted.")] = False,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first; `before` is how many others begin before one that waits."""
    from inlay.cluster.account import account_name
    from inlay.cluster.ids import parse_wanted_tags

    with job_server(address, insecure) as server:
        owner = account_name() if mine else None
        jobs = server.jobs(parse_wanted_tags(tag or []), state=state, owner=owner, limit=limit)
    if as_json:
        print_json([job_values(job) for job in jobs])
        return
    if not jobs:
        print("no jobs")
        return
    from rich.table import Table
    from rich.text import Text

    columns = {
        "id": [job.job_id for job in jobs],
        "state": [job.state for job in jobs],
        "before": ["" if job.before is None else str(job.before) for job in jobs],
        "priority": [job.priority for job in jobs],
        "submitted": [show_time(job.submitted) or "" for job in jobs],
        "owner": [job.owner for job in jobs],
        "tags": [" ".join(f"{name}={value}" for name, value in sorted(job.tags.items())) for job in jobs],
    }
    # Narrow, where nobody waits, and all are of one priority.
    shown = {
        name: cells
        for name, cells in columns.items()
        if (name != "before" or any(cells)) and (name != "priority" or not {"", "normal"}.issuperset(cells))
    }
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in shown:
        table.add_column(name, overflow="fold")
    for row in zip(*shown.values(), strict=True):
        # Text, since rich takes brackets in a plain string for its markup, and the words are other people's.
        table.add_row(*map(Text, row))
    print_rich(table)
