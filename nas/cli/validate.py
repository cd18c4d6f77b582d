"""`inlay validate`: every problem of a job file at once."""

from __future__ import annotations

import sys

import typer

from inlay.nas.cli.output import JobArgument, JsonOption, print_json


def validate_command(job: JobArgument, as_json: JsonOption = False) -> None:
    """Check a job file: all its errors at once; nothing is run."""
    from inlay.nas.check import check_file
    from inlay.nas.job import Job, JobError

    checked = check_file(job)
    if as_json:
        problems = [{"field": p.field, "text": p.text} for p in checked.problems]
        print_json({"valid": not problems, "problems": problems, "warnings": checked.warnings})
        raise typer.Exit(2 if problems else 0)
    if checked.problems:
        raise JobError.of(checked.problems, {}, job)
    rounds = Job.load(job).rounds
    print(f"{job} is right" + (f"; it has {rounds} rounds, whose budgets `inlay plan` shows" if rounds > 1 else ""))
    for warning in checked.warnings:
        print(f"! {warning}", file=sys.stderr)
