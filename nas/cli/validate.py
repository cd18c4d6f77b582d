"""`inlay validate`: every problem of a job file at once."""

from __future__ import annotations

import typer

from inlay.nas.cli.output import JobArgument, JsonOption, print_json


def validate_command(job: JobArgument, as_json: JsonOption = False) -> None:
    """Check a job file: all its errors at once; nothing is run."""
    from inlay.nas.check import problems_of_file
    from inlay.nas.job import JobError

    problems = problems_of_file(job)
    if as_json:
        print_json({"valid": not problems, "problems": [{"field": p.field, "text": p.text} for p in problems]})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise JobError.of(problems, {}, job)
    print(f"{job} is right")
