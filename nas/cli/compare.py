"""`inlay compare`: several searches, or the solutions of one, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json, print_rich


def compare_command(
    workspaces: Annotated[
        list[str], typer.Argument(metavar="WORKSPACE...", help="One workspace: its solutions. Several: their children.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare solutions of one workspace, or children of several."""
    from inlay.nas.report.comparison import children_of, comparison_table, solutions_of
    from inlay.nas.workspace import Workspace

    places = [Workspace(workspace).last_round() for workspace in workspaces]
    for place in places:
        place.require()
    rows = solutions_of(places[0]) if len(places) == 1 else children_of(places)
    if as_json:
        print_json([row.to_dict() for row in rows])
    else:
        print_rich(comparison_table(rows))
