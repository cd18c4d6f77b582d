"""What verbs print: JSON or tables on stdout, at most as wide as the terminal (80 columns where there is none)."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
WorkspaceArgument = Annotated[
    str, typer.Argument(metavar="WORKSPACE", help="The folder or URL that `inlay run` printed.")
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job file (YAML).")]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_rich(*values: Any) -> None:
    """Tables and texts on stdout."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 80, highlight=False)
    for value in values:
        console.print(value)
