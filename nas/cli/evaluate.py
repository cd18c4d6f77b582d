"""`inlay evaluate`: child, parent and baselines side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, WorkspaceArgument, print_json, print_rich


def evaluate_command(
    workspace: WorkspaceArgument,
    solution: Annotated[
        str | None,
        typer.Option("--solution", help="Id of a solution of `inlay solve`, as assembled; measured now if need be."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show quality, size and speed of child, parent and baselines."""
    from inlay.nas.errors import UserError
    from inlay.nas.report.figures import evaluation_markdown, evaluation_table
    from inlay.nas.report.records import Evaluation, read_evaluation
    from inlay.nas.workspace import Workspace

    place = Workspace(workspace)
    place.require()
    if solution is None:
        evaluation = read_evaluation(place)
    else:
        stored = (place.find_json(f"solutions/{solution}.json") or {}) if solution.isalnum() else {}
        if "evaluation" not in stored:
            from inlay.nas.stages.solutions import evaluate_solution

            stored["evaluation"] = evaluate_solution(place, solution)
        evaluation = Evaluation.of(stored["evaluation"])
    if evaluation is None:
        raise UserError(f"{place.url} has no evaluation.json yet; run its job to the end")
    if as_json:
        print_json(evaluation.raw)
    elif markdown:
        print(evaluation_markdown(evaluation))
    else:
        print_rich(evaluation_table(evaluation))
