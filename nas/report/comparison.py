"""Solutions of one workspace, or children of several, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from rich.table import Table

from inlay.nas.errors import UserError
from inlay.nas.quantities import show_bytes, show_count
from inlay.nas.report.records import (
    PARENT_LABELS,
    SolutionRow,
    read_evaluation,
    read_pool,
    read_solution,
)
from inlay.nas.tables.costs import CostTable
from inlay.nas.workspace import Workspace


@dataclass(frozen=True)
class Compared:
    """One line: a solution, or the child of a workspace. Ratios are to the parent; None is not known."""

    name: str
    predicted_kl_nats: float | None
    kl_nats: float | None
    runtime_ratio: float | None
    memory_ratio: float | None
    weights_bytes: int
    parameters: int
    changed_layers: int
    kept: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def solutions_of(workspace: Workspace) -> list[Compared]:
    """The kept solution, then those that `inlay solve` stored; costs in the first scenario."""
    kept = read_solution(workspace)
    names = [name.removeprefix("solutions/").removesuffix(".json") for name in workspace.store.list("solutions/")]
    stored = [row for name in names if (row := read_solution(workspace, name)) and (not kept or row.id != kept.id)]
    rows = [*([kept] if kept else []), *stored]
    if not rows:
        raise UserError(f"{workspace.url} has no solution yet; run the job, or `inlay solve {workspace.url}`")
    costs = CostTable(workspace.read_table("costs"))
    true = {row.id: row.kl_nats for row in read_pool(workspace)}
    return [_of_solution(row, costs, true.get(row.id), row is kept) for row in rows]


def children_of(workspaces: Sequence[Workspace]) -> list[Compared]:
    """The child that each search ended with; UserError for a search without figures yet."""
    found = []
    for workspace in workspaces:
        evaluation = read_evaluation(workspace)
        if evaluation is None:
            raise UserError(f"{workspace.url} has no evaluation.json yet; run its job to the end")
        parent, child = evaluation.parent, evaluation.model(evaluation.chosen) or evaluation.child
        solution = read_solution(workspace)
        found.append(
            Compared(
                name=own.search if (own := workspace.own_round()) else PurePosixPath(workspace.url).name,
                predicted_kl_nats=solution.predicted_kl_nats if solution and evaluation.chosen == "child" else None,
                kl_nats=child.kl_nats,
                runtime_ratio=child.runtime_seconds / parent.runtime_seconds,
                memory_ratio=None,
                weights_bytes=child.weights_bytes,
                parameters=child.parameters,
                changed_layers=_changed(child.architecture),
                kept=True,
            )
        )
    return found


def comparison_table(rows: Sequence[Compared]) -> Table:
    """The lines for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=24)
    for name in ("KL predicted", "KL true", "runtime", "memory", "weights", "params", "changed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            _number(row.predicted_kl_nats),
            _number(row.kl_nats),
            "" if row.runtime_ratio is None else f"{row.runtime_ratio:.2f}x",
            "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}x",
            show_bytes(row.weights_bytes),
            show_count(row.parameters),
            f"{row.changed_layers}",
            style="bold green" if row.kept and len(rows) > 1 else "",
        )
    return table


def _of_solution(row: SolutionRow, costs: CostTable, true_kl: float | None, kept: bool) -> Compared:
    scenario = costs.scenarios[0]
    own = costs.total(scenario, row.architecture)
    parent = costs.total(scenario, costs.reference(len(row.architecture)))
    return Compared(
        name=row.id,
        predicted_kl_nats=row.predicted_kl_nats,
        kl_nats=row.kl_nats if row.kl_nats is not None else true_kl,
        runtime_ratio=own["runtime_ns"] / parent["runtime_ns"],
        memory_ratio=(own["weights_bytes"] + own["kv_bytes"]) / (parent["weights_bytes"] + parent["kv_bytes"]),
        weights_bytes=own["weights_bytes"],
        parameters=own["parameters"],
        changed_layers=_changed(row.architecture),
        kept=kept,
    )


def _changed(architecture: Sequence[Sequence[str]]) -> int:
    return sum(tuple(block) != PARENT_LABELS for block in architecture)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
