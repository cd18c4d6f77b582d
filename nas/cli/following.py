"""Following a job's log until it ends; Ctrl-C leaves the job alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from inlay.cluster.jobs import JobServer

INTERRUPTED = 130


def follow(server: JobServer, job_id: str, stream: TextIO, tail: int | None = None) -> None:
    """Print what the job writes, as it comes, to `stream`; of what it has written the last `tail` lines."""

    def tell(reason: str) -> None:
        print(f"inlay: {reason}", file=sys.stderr, flush=True)

    with left_alone(job_id):
        for text in server.follow(job_id, tell, tail):
            stream.write(text)
            stream.flush()


@contextmanager
def left_alone(job_id: str) -> Iterator[None]:
    """Say, when Ctrl-C ends the body, that the job goes on; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninlay: the job goes on; `inlay stop {job_id}` stops it", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
