"""Following a job's log until it ends; Ctrl-C leaves the job alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from inlay.cluster.jobs import JobServer

INTERRUPTED = 130


def follow(server: JobServer, job_id: str, stream: TextIO) -> None:
    """Print what the job writes, as it comes, to `stream`."""
    try:
        for text in server.follow(job_id, lambda reason: print(f"inlay: {reason}", file=sys.stderr, flush=True)):
            stream.write(text)
            stream.flush()
    except KeyboardInterrupt:
        print(f"\ninlay: the job goes on; `inlay stop {job_id}` stops it", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
