"""export: a child of a finished search as a folder that ordinary runtimes load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inlay.nas.errors import UserError
from inlay.nas.tables.architecture import blocks_of

if TYPE_CHECKING:
    from inlay.nas.workspace import Workspace

FORMATS = ("hf",)


def export_child(workspace: Workspace, form: str, output: Path, solution: str | None = None) -> Path:
    """Writes a child of a finished search as a model folder.

    Args:
        workspace: the search.
        form: one of FORMATS.
        output: a folder that is empty or not there.
        solution: `child`, `uniform` or `depth` as recovered, or the id of a solution of `inlay solve`, as assembled; by
            default the one that was chosen.

    Raises:
        UserError: an unknown format or solution, a folder that is taken, or a search that has not come so far.
    """
    if form not in FORMATS:
        raise UserError(f"--format: {form} is not known; the formats are {', '.join(FORMATS)}")
    from inlay.nas.export.hf import card, check_output, write_folder
    from inlay.nas.pieces.assembled import TrainedModel
    from inlay.nas.stages.solutions import assembled_blob, evaluate_solution, find_solution, job_of

    check_output(output)
    job, parent = job_of(workspace)
    # evaluation.json may be of a later job, one that did not come to its end.
    run = workspace.read_json("run.json")
    evaluation, models = run["evaluation"], run["models"]
    name = solution or str(evaluation["chosen"])
    if name in models:
        model = TrainedModel(blocks_of(evaluation[name]["architecture"]), models[name])
        return write_folder(workspace, parent, model, output, card({**evaluation, "chosen": name}, job), job)
    stored = find_solution(workspace, name)
    figures = stored.get("evaluation") or evaluate_solution(workspace, name)
    architecture = blocks_of(stored["architecture"])
    model = TrainedModel(architecture, assembled_blob(workspace, parent, architecture))
    return write_folder(workspace, parent, model, output, card(figures, job), job)
