"""The end of a run on stdout: the figures, time, memory and cost of every stage, and where to look next."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inlay.cluster.urls import redacted
from inlay.nas.quantities import show_bytes, show_seconds
from inlay.nas.report.figures import evaluation_table, preset_table
from inlay.nas.report.promises import broken_promises
from inlay.nas.report.records import Evaluation, StageRow, stages_of, work_columns


def print_summary(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a run's result.

    Args:
        result: `workspace`, `evaluation` (as evaluation.json), `run` (as run.json) and `already_done`, as
            `RunResult.to_dict` gives them.
        console: where to; stdout by default.
    """
    console = console or Console(file=sys.stdout, width=None if sys.stdout.isatty() else 80, highlight=False)
    if result.get("already_done"):
        console.print(f"nothing to do: every piece of this job is in {result['workspace']}", soft_wrap=True)
    console.print()
    evaluation = Evaluation.of(result["evaluation"])
    console.print(evaluation_table(evaluation))
    for sentence in broken_promises(evaluation):
        console.print(sentence)
    if presets := preset_table(evaluation):
        console.print()
        console.print(presets)
    if stages := stages_of(result["run"]):
        console.print()
        console.print(stage_table(stages))
    console.print()
    for line in closing_lines(result):
        console.print(Text(line), soft_wrap=not (console.is_terminal and " failed and " in line))


_ON_THE_PAGE = ("FLOPs", "weights read")
"""Columns for which a terminal has no room."""


def stage_table(stages: list[StageRow]) -> Table:
    """Time, as it was and as it was planned, memory and cost of every stage."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    costs = {title: each for title, each in work_columns(stages).items() if title not in _ON_THE_PAGE}
    table.add_column("stage", no_wrap=True)
    for name in ("time", "pieces", "peak memory", *costs):
        table.add_column(name, justify="right", no_wrap=True)
    for number, stage in enumerate(stages):
        pieces = "" if stage.pieces is None else str(stage.pieces)
        memory = show_bytes(stage.peak_bytes) if stage.peak_bytes else ""
        cost = (each[number] for each, _ in costs.values())
        table.add_row(stage.name, show_seconds(stage.seconds), pieces, memory, *cost)
    total = sum(stage.seconds for stage in stages)
    peak = max((stage.peak_bytes or 0 for stage in stages), default=0)
    cost = (whole for _, whole in costs.values())
    table.add_row("total", show_seconds(total), "", show_bytes(peak) if peak else "", *cost, style="bold")
    return table


def closing_lines(result: Mapping[str, Any]) -> list[str]:
    """Where to look, and on the last line what failed."""
    workspace, run, chosen = str(result["workspace"]), result["run"], result["evaluation"].get("chosen", "child")
    lines = []
    if chosen != "child":
        lines.append(f"the baseline `{chosen}` ended better than the search's own child, and is what you got")
    if result["evaluation"].get("parent", {}).get("times") == "given":
        lines.append("times are those of the given cost table (hardware.costs), not measured here")
    lines.append(f"child      {workspace}/child")
    lines.append(f"pictures   inlay report {workspace}")
    if run_id := run.get("mlflow_run_id"):
        named = run.get("job", {}).get("tracking", {}).get("uri")
        uri = redacted(named or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
        where = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        lines += [f"mlflow     {where}", f"           run {run_id}"]
    if failed := run.get("failed_variants"):
        lines.append(failed_sentence(failed))
    return lines


def failed_sentence(failed: Sequence[Mapping[str, Any]]) -> str:
    """How many variants failed and were not offered, and why the first did."""
    first, more = failed[0], len(failed) - 1
    count = "1 variant failed and was not offered" if not more else f"{more + 1} variants failed and were not offered"
    rest = f" (and {more} more)" if more else ""
    return f"{count}: layer {first['layer']} {first['variant']}: {first['reason']}{rest}"
