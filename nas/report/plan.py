"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from inlay.nas.quantities import show_bytes, show_count, show_hours, show_operations, show_seconds


def plan_tables(plan: Mapping[str, Any]) -> Iterator[Table | Text]:
    """Renders what `make_plan` gives.

    Args:
        plan: `parent` (`name`, `family`, `layers`, `parameters`, `weights_bytes`), `space` (`variants`, `trained`,
            `log10_architectures`), `stages` (each `name`, `what`, and where known `pieces`, `bytes`, `read_bytes`,
            `operations`, `seconds`, `limit`, `cpu_hours`, `gpu_hours`), `facts` (pairs of name and text), `warnings`
            (sentences); all but `stages` may be missing.
    """
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in (*_of_parent(plan.get("parent")), *_of_space(plan.get("space")), *plan.get("facts", ())):
        facts.add_row(name, text)
    if facts.row_count:
        yield facts
        yield Text("")
    yield from _stages(plan["stages"])
    yield from _work(plan["stages"])
    for warning in plan.get("warnings", ()):
        yield Text.assemble(("! ", "yellow"), warning)


def _of_parent(parent: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if parent is not None:
        sizes = f"{show_count(parent['parameters'])} parameters, {show_bytes(parent['weights_bytes'])}"
        yield "parent", f"{parent['name']} ({parent['family']}, {parent['layers']} layers, {sizes})"


def _of_space(space: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if space is not None:
        power = space["log10_architectures"]
        many = f"10^{power:.0f}" if power > 4 else f"{10**power:,.0f}"
        yield "space", f"{space['variants']} variants, {space['trained']} of them trained; {many} architectures"


def _stages(stages: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """What each does and how long it takes."""
    held = "gpu_hours" if any(stage.get("gpu_hours") for stage in stages) else "cpu_hours"
    table = _table("pieces", "size", "time", f"{held[:3].upper()} hours")
    table.add_column("what", overflow="fold")
    for stage in stages:
        table.add_row(
            stage["name"],
            _known(stage.get("pieces"), str),
            _known(stage.get("bytes"), show_bytes),
            _known(stage.get("seconds"), lambda seconds: f"~{show_seconds(seconds)}"),
            _known(stage.get(held), lambda hours: f"~{show_hours(hours)}"),
            stage.get("what", ""),
        )
    if known := [stage for stage in stages if stage.get("seconds") is not None]:
        seconds, hours = (sum(stage[name] for stage in known) for name in ("seconds", held))
        table.add_row("total", "", "", f"~{show_seconds(seconds)}", f"~{show_hours(hours)}", "", style="bold")
    yield table


def _work(stages: Sequence[Mapping[str, Any]]) -> Iterator[Table | Text]:
    """What each computes and reads, and what most of its workers' time goes to, where that is known."""
    known = [stage for stage in stages if stage.get("operations") or stage.get("read_bytes")]
    if not known:
        return
    table = _table("FLOPs", "weights read")
    table.add_column("mostly")
    for stage in known:
        work = (stage["operations"], show_operations), (stage["read_bytes"], show_bytes)
        table.add_row(stage["name"], *(_known(value or None, show) for value, show in work), stage["limit"])
    operations, read = (sum(stage[name] for stage in known) for name in ("operations", "read_bytes"))
    table.add_row("total", show_operations(operations), show_bytes(read), "", style="bold")
    yield Text("")
    yield table


def _table(*numbers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _known(value: Any, show: Any) -> str:
    return "" if value is None else str(show(value))
