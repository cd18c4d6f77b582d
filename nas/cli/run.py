"""`inlay run`: the whole search, here, resumable."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inlay.nas.cli.output import JobArgument


def run_command(
    job: JobArgument,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="Folder or URL to keep the search in; default <job stem>.search."),
    ] = None,
) -> None:
    """Run a search here; run again to go on where it stopped.

    Its stages: measure, distill, score, assemble, recover, evaluate, export.
    """
    from inlay.nas.job import Job
    from inlay.nas.report.terminal import make_reporter

    loaded = Job.load(job)
    with make_reporter() as reporter:
        try:
            from inlay.nas.stages.on_end import told_on_end
            from inlay.nas.stages.rounds import run_rounds

            result = told_on_end(
                loaded, workspace, None, reporter.warning, lambda: run_rounds(loaded, workspace, reporter)
            )
        except KeyboardInterrupt:
            reporter.close()
            print("inlay: stopped; finished pieces are kept, the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        reporter.summary(result.to_dict())
