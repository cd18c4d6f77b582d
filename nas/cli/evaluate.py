"""`inlay evaluate`: child, parent and baselines side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.nas.cli.output import JsonOption, WorkspaceArgument, print_json, print_rich

if TYPE_CHECKING:
    from inlay.nas.workspace import Workspace


def evaluate_command(
    workspace: WorkspaceArgument,
    solution: Annotated[
        str | None,
        typer.Option("--solution", help="Id of a solution of `inlay solve`, as assembled; measured now if need be."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Tasks of lm-evaluation-harness for both models, with commas between them."),
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option("--task-folder", help="Where these are; default: those that the harness brings.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", help="How much answers depend on the wording: a file of prompts, one a line, or `report`."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show quality, size and speed of child, parent and baselines."""
    from inlay.nas.errors import UserError
    from inlay.nas.report.figures import evaluation_markdown, evaluation_table
    from inlay.nas.report.further import further_tables
    from inlay.nas.report.records import Evaluation, read_evaluation
    from inlay.nas.workspace import Workspace

    place = Workspace(workspace).last_round()
    place.require()
    if tasks is not None or task_folder is not None or prompts is not None:
        evaluation: Evaluation | None = Evaluation.of(_further(place, solution, tasks, task_folder, prompts))
    elif solution is None:
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
        print_rich(evaluation_table(evaluation), *further_tables(evaluation))


def _further(
    place: Workspace, solution: str | None, tasks: str | None, folder: Path | None, prompts: str | None
) -> dict[str, Any]:
    from transformers.utils import logging

    from inlay.nas.errors import UserError
    from inlay.nas.stages.further import evaluate_further
    from inlay.nas.stages.tasks import Tasks

    names = [name for part in (tasks or "").split(",") if (name := part.strip())]
    if (folder is not None and not names) or (tasks is not None and not names):
        raise UserError("--tasks: names no task; write some with commas between them, such as --tasks arc_easy,piqa")
    # Transformers draws one for every model that it makes.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    found = Tasks(names, folder) if names else None
    return evaluate_further(place, solution, found, prompts, lambda text: print(text, file=sys.stderr))
