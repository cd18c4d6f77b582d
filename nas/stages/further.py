"""Further figures of a finished search, taken when they are asked for: tasks, and sensitivity to prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.runtime import connect
from inlay.cluster.tracking import tracking_uri
from inlay.nas.errors import UserError
from inlay.nas.job import Job
from inlay.nas.loop.prompts import told_of
from inlay.nas.loop.search import Search, SmallSearch, cluster_settings
from inlay.nas.loop.sensitivity import asked, sensitivity
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.continuing import model_of
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.recording.tracked import TrackedSearch
from inlay.nas.stages.run import original_of
from inlay.nas.stages.solutions import (
    evaluate_solution,
    find_solution,
    inputs_of_workspace,
    is_small,
    job_of,
    model_named,
)
from inlay.nas.stages.tasks import Tasks, task_rows
from inlay.nas.workspace import Workspace

PROMPTS_AT_MOST = 100
FROM_REPORT = "report"
"""In place of a file of prompts: those of the search's own report."""


def evaluate_further(
    place: Workspace, solution: str | None, tasks: Tasks | None, prompts: str | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Adds figures to those that are there of the chosen child, or of a stored solution as assembled.

    Args:
        place: a finished search.
        solution: the id of a solution; None: what was chosen.
        tasks: of the harness, for both models.
        prompts: a file with a prompt on each line, or `report`; None: none.
        tell: told what it will take.

    Returns:
        The evaluation with `tasks` and `sensitivity`, as it is kept now.

    Raises:
        UserError: there is no finished search, no such solution, or a prompt that cannot be asked.
        InlayError: a worker or a task failed.
    """
    job, parent = job_of(place)
    reporter = Reporter()
    evaluation = _evaluation_of(place, solution)
    named = None if prompts is None else _prompts(prompts, place)
    what = None if named is None else asked(job, parent, named)
    kind = SmallSearch if what is None or is_small(job, parent, what.effort, what.longest) else Search
    with connect(cluster_settings(job, place)) as cluster:
        inputs, original = inputs_of_workspace(place), original_of(job, place)
        search = kind(job, place, parent, cluster, reporter, inputs=inputs, original=original)
        model = model_named(place, parent, solution or str(evaluation["chosen"]))
        if what is not None:
            tell(what.cost())
            evaluation["sensitivity"] = sensitivity(search, what, model)
        if tasks is not None:
            evaluation["tasks"] = _tasks(search, tasks, model)
    if solution is None:
        place.write_json("evaluation.json", evaluation)
        _track(job, place, reporter, evaluation)
    else:
        place.write_json(f"solutions/{solution}.json", {**find_solution(place, solution), "evaluation": evaluation})
    return evaluation


def _evaluation_of(place: Workspace, solution: str | None) -> dict[str, Any]:
    if solution is None:
        return dict(place.read_json("evaluation.json"))
    return dict(find_solution(place, solution).get("evaluation") or evaluate_solution(place, solution))


def _prompts(prompts: str, place: Workspace) -> list[tuple[str, str]]:
    """Prompts, each with what names it where something is wrong with it."""
    if prompts == FROM_REPORT:
        rows = place.read_json("evaluation.json")["prompts"]
        if not rows:
            raise UserError("--prompts: the report of this search has no prompts; give a file with one on each line")
        return [(f"--prompts: number {number} of the report's", row["prompt"]) for number, row in enumerate(rows, 1)]
    try:
        lines = Path(prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"--prompts: {prompts} cannot be read ({reason}); give a file with a prompt on each line"
        ) from None
    found = [(f"--prompts: line {number} of {prompts}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"--prompts: {prompts} has no prompts; write one on each line")
    if len(found) > PROMPTS_AT_MOST:
        raise UserError(f"--prompts: {prompts} has {len(found)} prompts; give {PROMPTS_AT_MOST} at most")
    return found


def _tasks(search: Search, tasks: Tasks, model: TrainedModel) -> list[dict[str, Any]]:
    """Both models one after the other in this process, so that one is held at a time."""
    tokenizer = search.parent.tokenizer()
    device = search.job.hardware.device if torch.cuda.is_available() else "cpu"
    found = []
    for each in (None, model):
        own = {"parent": search.reference_place} if each is None else {}
        arguments = {**search.base, **told_of(each), **own, "store": search.workspace.url, "device": device}
        found.append(tasks.run(model_of(arguments, None), tokenizer))
    return task_rows(*found)


def _track(job: Job, place: Workspace, reporter: Reporter, evaluation: dict[str, Any]) -> None:
    """The search's own MLflow run goes on with these figures; where its store is not here, nothing is made."""
    run = place.read_json("run.json")
    store = tracking_uri(job.tracking.uri).removeprefix("sqlite:///")
    if run.get("mlflow_run_id") is None or ("://" not in store and not Path(store).exists()):
        return
    tracked = TrackedSearch(job, place, reporter)
    tracked.go_on(run["mlflow_run_id"], run["mlflow_creation"])
    try:
        tracked.evaluation(evaluation)
        tracked.report()
    finally:
        tracked.end(None)
