"""`inlay tune`: an Optuna study over the settings of a job's distillation."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from inlay.nas.cli.output import JobArgument, JsonOption, print_json, print_rich


class Metric(StrEnum):
    """What is lowered: the KL after recovery, or before it."""

    kl = "kl"
    assembled = "assembled"


def tune_command(
    job: JobArgument,
    trials: Annotated[
        int, typer.Option("--trials", min=1, max=100_000, help="Finished trials in all, earlier ones included.")
    ] = 20,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="When no more trials begin: 90s, 30min, 2h.")
    ] = None,
    metric: Annotated[
        Metric,
        typer.Option("--metric", help="KL on held-out text after recovery, or as assembled (local settings alone)."),
    ] = Metric.kl,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder or URL of the search; default <job stem>.search.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URL", help="Optuna's database; default: tune.db in the workspace."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The tuned job; default <job stem>.tuned.yaml."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for better rates, batches and schedules of a job's distillation.

    Every trial trains the search's child with other settings; the best are compared with the job's by other seeds, and
    written as a job file if they are better. Run again to go on where it stopped.
    """
    from inlay.nas.errors import UserError
    from inlay.nas.job import Job
    from inlay.nas.quantities import parse_seconds
    from inlay.nas.report.terminal import make_reporter
    from inlay.nas.report.tuning import closing, trials_table

    loaded = Job.load(job)
    try:
        seconds = None if timeout is None else parse_seconds(timeout)
    except ValueError as error:
        raise UserError(f"--timeout: {error}") from None
    target = output or Path(job).with_suffix(".tuned.yaml")
    with make_reporter() as reporter:
        try:
            from inlay.nas.stages.tuning.tune import tune_job

            told = tune_job(
                loaded,
                workspace,
                reporter,
                trials=trials,
                timeout=seconds,
                metric=metric.value,
                storage=storage,
                output=target,
            )
        except KeyboardInterrupt:
            reporter.close()
            print("inlay: stopped; finished trials are kept, the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
    if as_json:
        print_json(told)
        return
    print_rich(trials_table(told), "")
    for line in closing(told):
        print(line)
