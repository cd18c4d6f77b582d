"""Every picture that a workspace has the data for, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from inlay.nas.report.architecture import architecture_record, shares_of
from inlay.nas.report.curves import CurvesRecord, curves_record, draw_curves
from inlay.nas.report.grid import GridRecord, draw_grid
from inlay.nas.report.losses import loss_record, score_record
from inlay.nas.report.pareto import ParetoRecord, draw_pareto, pareto_record
from inlay.nas.report.records import (
    read_evaluation,
    read_losses,
    read_pool,
    read_recovery,
    read_rows,
    read_scores,
    read_solution,
)
from inlay.nas.tables.architecture import Block
from inlay.nas.tables.costs import CostTable
from inlay.nas.workspace import Workspace


@dataclass(frozen=True)
class Picture:
    """What is drawn, and the drawing."""

    record: ParetoRecord | GridRecord | CurvesRecord
    figure: Figure


def all_pictures(workspace: Workspace, solution: str | None = None) -> Iterator[tuple[str, Picture]]:
    """`pareto`, `architecture`, `losses`, `scores`, `recovery`, each as soon as its data is there.

    With `solution`, that one's architecture is drawn too.
    """
    costs = read_rows(workspace, "costs")
    pool = read_pool(workspace)
    if pool and costs:
        front = pareto_record(pool, parent_runtime_ns(workspace), read_evaluation(workspace))
        yield "pareto", Picture(front, draw_pareto(front))
    grids = {}
    if models := architectures(workspace, solution):
        grids["architecture"] = architecture_record(models, shares_of(costs))
    if losses := read_losses(workspace):
        grids["losses"] = loss_record(losses)
    if scores := read_scores(workspace):
        grids["scores"] = score_record(scores)
    for name, grid in grids.items():
        yield name, Picture(grid, draw_grid(grid))
    if recovery := read_recovery(workspace):
        run = workspace.find_json("run.json") or {}
        tokens = int(run.get("job", {}).get("recover", {}).get("tokens", len(recovery)))
        curves = curves_record(recovery, tokens)
        yield "recovery", Picture(curves, draw_curves(curves))


def architectures(workspace: Workspace, solution: str | None = None) -> dict[str, tuple[Block, ...]]:
    """Architectures by name: those of the figures, else the kept solution; with `solution`, that one too."""
    evaluation = read_evaluation(workspace)
    found = {model.name: model.architecture for model in evaluation.models} if evaluation else {}
    if not found and (kept := read_solution(workspace)):
        found["child"] = kept.architecture
    if solution is not None and (asked := read_solution(workspace, solution)):
        found[asked.id] = asked.architecture
    return {name: blocks for name, blocks in found.items() if blocks}


def parent_runtime_ns(workspace: Workspace) -> int:
    """The parent's predicted runtime in the first scenario, from the cost table."""
    table = CostTable(workspace.read_table("costs"))
    num_layers = 1 + max(int(row["layer"]) for row in table.rows)
    return table.total(table.scenarios[0], table.reference(num_layers))["runtime_ns"]
