"""`inlay report`: the pictures of a search, and one HTML page that holds them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, WorkspaceArgument, print_json


def report_command(
    workspace: WorkspaceArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to; default: the workspace.")
    ] = None,
    solution: Annotated[
        str | None, typer.Option("--solution", help="Draw this solution's architecture beside the chosen one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html with the figures and pictures of a search."""
    from inlay.nas.report.page import write_report
    from inlay.nas.workspace import Workspace

    whole = Workspace(workspace)
    whole.require()
    written = write_report(whole.last_round(), output or whole.folder, solution)
    if as_json:
        print_json({"written": [str(path) for path in written]})
    else:
        print("\n".join(str(path) for path in written))
