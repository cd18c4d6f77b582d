"""What the solver answered, for people and as JSON: solutions, what binds, what would change, and why nothing fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from inlay.nas.cli.subject import Subject, WorkspaceSubject
from inlay.nas.tables.files import Column
from inlay.solver import Change, Infeasibility, Problem, Sensitivity, Solution

SIGNS = {"upper": "<=", "lower": ">="}
MOST_COLUMNS = 4
"""Costs beside the score in a table of a terminal; JSON has all."""
STEPS = {"ns": (1000, "us"), "bytes": (2**20, "MiB"), "count": (1000, "thousand")}


def solution_dict(subject: Subject, solution: Solution) -> dict[str, Any]:
    """A solution in the columns' own units; `choices` is the label of each layer."""
    score = subject.score
    return {
        "status": solution.status,
        "method": solution.method,
        "objective": None if solution.objective is None else score.value(solution.objective),
        "bound": None if solution.bound is None else score.value(solution.bound),
        "gap": solution.gap,
        "totals": {name: subject.columns[name].value(total) for name, total in solution.totals.items()},
        "binding": list(solution.binding),
        "choices": list(solution.labels),
        "seconds": solution.seconds,
    }


def limits_dict(subject: Subject, problem: Problem) -> list[dict[str, Any]]:
    """The limits in the columns' own units."""
    return [
        {"name": limit.name, "side": side, "value": subject.columns[limit.name].value(value)}
        for limit in problem.limits
        for side, value in (("upper", limit.upper), ("lower", limit.lower))
        if value is not None
    ]


def infeasible_dict(subject: Subject, told: Infeasibility) -> dict[str, Any]:
    """Why nothing fits, in the columns' own units."""
    columns = subject.columns
    return {
        "nearest": [
            {
                "name": near.name,
                "side": near.side,
                "asked": columns[near.name].value(near.asked),
                "alone": columns[near.name].value(near.alone),
                "with_others": None if near.with_others is None else columns[near.name].value(near.with_others),
            }
            for near in told.nearest
        ],
        "conflict": [{"name": near.name, "side": near.side} for near in told.conflict],
        "together": None if told.together is None else solution_dict(subject, told.together),
        "loosened": told.loosened,
        "cheapest": {name: columns[name].value(total) for name, total in told.cheapest.items()},
    }


def infeasible_text(subject: Subject, told: Infeasibility) -> str:
    """Why nothing fits: each limit alone and beside the others, what conflicts, and the nearest answer."""
    lines = ["no architecture meets the limits"]
    for near in told.nearest:
        column = subject.columns[near.name]
        others = ""
        if len(told.nearest) > 1:
            excluded = "the others cannot be met"
            others = f", {excluded if near.with_others is None else f'{column.show(near.with_others)} with the others'}"
        lines.append(
            f"{_limit_text(column, near.side, near.asked)}: reaches {_with_ratio(subject, near.name, near.alone)} "
            f"alone{others}"
        )
    conflict = " and ".join(_limit_text(subject.columns[near.name], near.side, near.asked) for near in told.conflict)
    lines.append(f"in conflict: {conflict}" if len(told.conflict) > 1 else f"out of reach by itself: {conflict}")
    if told.together is not None and told.loosened is not None and told.together.objective is not None:
        totals = ", ".join(
            f"{name} {subject.columns[name].show(told.together.totals[name])}"
            for name in told.cheapest
            if name != subject.score.name
        )
        lines.append(
            f"nearest: with every limit {100 * told.loosened:.3g} % looser, {subject.score.name} "
            f"{subject.score.show(told.together.objective)} at {totals}"
        )
    cheapest = ", ".join(f"{name} {subject.columns[name].show(total)}" for name, total in told.cheapest.items())
    lines.append(f"least of each that any architecture has: {cheapest}")
    return "\n  ".join(lines)


def table_of(subject: Subject, problem: Problem, solutions: Sequence[Solution], ids: Sequence[str]) -> Table:
    """One line a solution; a workspace's has ids, and its first scenario in terms of the parent."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    heads = ["id" if ids else "#", "method", "status", subject.score.name.replace("predicted_kl_nats", "predicted KL")]
    names = _shown(subject, problem)
    for head in [*heads, *names]:
        table.add_column(head, justify="left" if head in heads[:3] else "right", overflow="fold")
    for number, solution in enumerate(solutions):
        objective = "" if solution.objective is None else subject.score.show(solution.objective)
        totals = [_cell(subject, name, solution) for name in names]
        name = ids[number] if ids else str(number + 1)
        table.add_row(name, solution.method, _status(solution), objective, *totals)
    return table


def binding_text(subject: Subject, problem: Problem, solution: Solution) -> str:
    """What binds and, by the relaxation's prices, what a little more of it would buy."""
    if not solution.binding:
        return "No limit binds." if solution.status == "optimal" and problem.limits else ""
    parts = []
    for name in solution.binding:
        column, price = subject.columns[name], solution.prices[name]
        step, unit = STEPS.get(column.kind, (column.scale, ""))
        worth = price * step / subject.score.scale
        more = f"1 {unit} more" if unit else "1 more"
        told = f"{worth:.0f}" if worth >= 100 else f"{worth:.2g}"
        parts.append(f"`{name}` binds: {more} is worth about {told} {_score_unit(subject)}")
    return "; ".join(parts) + "."


def architecture_text(solution: Solution) -> str:
    """The choices, runs of equal layers together: `0-3 parent, 4 w64`."""
    parts, start = [], 0
    for label, run in itertools.groupby(solution.labels):
        end = start + len(list(run))
        parts.append(f"{start}-{end - 1} {label}" if end - start > 1 else f"{start} {label}")
        start = end
    return "Layers: " + ", ".join(parts)


def sensitivity_dict(subject: Subject, found: Sensitivity) -> dict[str, Any]:
    """The first changes when a limit moves, in the columns' own units."""
    column, score = subject.columns[found.name], subject.score

    def change(moved: Change | None) -> dict[str, Any] | None:
        if moved is None:
            return None
        layers = [{"layer": each.layer, "before": each.before, "after": each.after} for each in moved.layers]
        return {"limit": column.value(moved.limit), "gain": score.value(moved.gain), "layers": layers}

    return {
        "name": found.name,
        "side": found.side,
        "limit": column.value(found.limit),
        "price": found.price * column.scale / score.scale,
        "looser": change(found.looser),
        "tighter": change(found.tighter),
    }


def sensitivity_text(subject: Subject, found: Sensitivity) -> str:
    """The same in words."""
    column = subject.columns[found.name]
    parts = []
    for change in (found.looser, found.tighter):
        if change is not None:
            turn = "gains" if change.gain > 0 else "loses"
            layers = ", ".join(f"{each.layer} ({each.before} -> {each.after})" for each in change.layers[:3])
            more = f" and {len(change.layers) - 3} more" if len(change.layers) > 3 else ""
            move = 100 * (change.limit - found.limit) / max(1, abs(found.limit))
            gain = subject.score.show(abs(change.gain))
            parts.append(f"at {column.show(change.limit)} ({move:+.2g} %) it {turn} {gain}; layers {layers}{more}")
    limit = _limit_text(column, found.side, found.limit)
    return f"{limit}: " + ("; ".join(parts) if parts else "nothing changes nearby")


def _limit_text(column: Column, side: str, value: int) -> str:
    return f"{column.name} {SIGNS[side]} {column.show(value)}"


def _with_ratio(subject: Subject, name: str, total: int) -> str:
    ratio = subject.ratio(name, total)
    return subject.columns[name].show(total) + ("" if ratio is None else f" ({ratio:.3g}x)")


def _shown(subject: Subject, problem: Problem) -> list[str]:
    """The costs that a table shows: those of the limits first."""
    names = [limit.name for limit in problem.limits]
    if isinstance(subject, WorkspaceSubject):
        names = [*(subject.first + name for name in ("runtime", "memory", "parameters")), *names]
    else:
        names += problem.cost_names
    return list(dict.fromkeys(name for name in names if name != subject.score.name))[:MOST_COLUMNS]


def _cell(subject: Subject, name: str, solution: Solution) -> str:
    if not solution.totals:
        return ""
    total = solution.totals[name]
    ratio = subject.ratio(name, total) if isinstance(subject, WorkspaceSubject) else None
    if ratio is None:
        return subject.columns[name].show(total)
    return (
        f"{ratio:.3f}x" if subject.columns[name].kind == "ns" else f"{subject.columns[name].show(total)} {ratio:.2f}x"
    )


def _status(solution: Solution) -> str:
    if solution.status == "feasible" and solution.gap:
        return f"gap {100 * solution.gap:.2g} %"
    return "over limit" if solution.status == "infeasible" and solution.labels else solution.status


def _score_unit(subject: Subject) -> str:
    return "nats" if subject.score.name.endswith("kl_nats") else f"of `{subject.score.name}`"
