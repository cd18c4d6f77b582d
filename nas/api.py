"""The Python API: what the command line does, as functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.nas.job import Job
    from inlay.nas.stages.run import RunResult
    from inlay.solver import Solution


def run(job: Job, workspace: str | Path | None = None) -> RunResult:
    """Runs a search here, or what is left of it; see `inlay.nas.stages.run.run_job` for what it raises."""
    from inlay.nas.stages.rounds import run_rounds

    return run_rounds(job, workspace)


def solve(
    workspace: str | Path, limits: Mapping[str, Any], *, solutions: int = 1, min_difference: float = 0.2
) -> list[Solution]:
    """New budgets on the tables of a search; seconds, no training.

    Args:
        workspace: a search whose score and cost tables are there.
        limits: as the job's `budget`: `{"runtime": "0.5x"}`.
        solutions: how many, each differing from all before it in `min_difference` of the layers; the first is
            proven, the others are within 0.1 % of the best.

    Raises:
        UserError: a limit or the workspace is wrong.
        InfeasibleError: no architecture meets the limits; the text says what is reachable.
    """
    from inlay.nas.errors import UserError
    from inlay.nas.job.budget import parse_budget
    from inlay.nas.loop.solving import load_problem, solve_pool
    from inlay.nas.problems import FieldProblems
    from inlay.nas.workspace import Workspace

    try:
        budget = parse_budget(limits)
    except FieldProblems as error:
        raise UserError(f"limits: {error}") from error
    problem, _ = load_problem(Workspace(workspace).last_round(), budget)
    return solve_pool(problem, solutions, min_difference, time_limit=60.0)


def load_child(folder: str | Path, **options: Any) -> Any:
    """The exported model of a search, ready to generate.

    Args:
        folder: an exported folder, or a workspace (its child).
        options: for `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        UserError: there is no exported model.
    """
    from inlay.nas.errors import UserError
    from inlay.nas.modeling import InlayForCausalLM

    place = Path(folder)
    if (place / "workspace.json").is_file():
        place = place / "child"
    if not (place / "config.json").is_file():
        raise UserError(f"{folder} holds no exported model; let `inlay run` finish, or `inlay export` one")
    return InlayForCausalLM.from_pretrained(place, **options)
