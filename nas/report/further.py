"""Figures that are taken when asked for, as tables: tasks, and sensitivity to prompts."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from inlay.nas.report.records import Evaluation

Rows = list[tuple[str, ...]]


def task_lines(evaluation: Evaluation) -> Rows:
    """Head and lines of the tasks: both models with standard errors, and the child's minus the parent's; or nothing."""
    if not evaluation.tasks:
        return []
    rows: Rows = [("task", "metric", "samples", "parent", evaluation.chosen, "difference")]
    for row in evaluation.tasks:
        shown = (
            _with_error(row.parent, row.parent_standard_error),
            _with_error(row.child, row.child_standard_error),
            _with_error(row.difference, row.difference_standard_error, "+"),
        )
        rows.append((row.task, row.metric, "" if row.samples is None else f"{row.samples:,}", *shown))
    return rows


def sensitivity_lines(evaluation: Evaluation) -> Rows:
    """Head and line of POSIX with standard errors; or nothing."""
    found = evaluation.sensitivity
    if found is None:
        return []
    head = ("prompt sensitivity", "parent", evaluation.chosen, "difference")
    figures = (
        _with_error(*found.parent),
        _with_error(*found.child),
        _with_error(*found.difference, "+"),
    )
    return [head, (f"{found.prompts} prompts, {found.variations} ways, nats", *figures)]


def further_tables(evaluation: Evaluation) -> Iterator[Table | str]:
    """The same for a terminal."""
    for head, *lines in filter(None, (task_lines(evaluation), sensitivity_lines(evaluation))):
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.caption, table.caption_justify = "± is the standard error", "left"
        for place, name in enumerate(head):
            table.add_column(name, justify="right" if place else "left", overflow="fold")
        for line in lines:
            table.add_row(*line)
        yield ""
        yield table


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3g}" + ("" if error is None else f" ± {error:.2g}")
