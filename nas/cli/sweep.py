"""`inlay sweep`: the best architecture at each of many values of one limit or two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.nas.cli.output import JsonOption, print_json, print_rich
from inlay.nas.cli.solve import MinimizeOption, PairsOption, SourceArgument, TimeLimitOption, give_up, seconds_of

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.nas.cli.limits import Asked
    from inlay.nas.cli.subject import Subject
    from inlay.solver import Axis, FrontPoint


def sweep_command(
    source: SourceArgument,
    limit: Annotated[
        list[str],
        typer.Option(
            "--limit",
            metavar="NAME=FROM..TO",
            help="What to sweep, once or twice: runtime=0.3x..0.9x (an end may be left out); NAME=VALUE: fixed.",
        ),
    ],
    points: Annotated[int, typer.Option("--points", min=1, max=1000, help="Values of each swept limit.")] = 20,
    minimize: MinimizeOption = None,
    pairs: PairsOption = None,
    gap: Annotated[
        float, typer.Option("--gap", min=0, max=1, help="Share within which each point is proven; 0: exactly.")
    ] = 1e-4,
    time_limit: TimeLimitOption = "300s",
    as_json: JsonOption = False,
) -> None:
    """Draw the Pareto front over one limit or two, from a table or a workspace."""
    from inlay.nas.cli import answers
    from inlay.nas.cli.limits import parse_asked
    from inlay.nas.cli.subject import limited, open_subject, told_to_user
    from inlay.nas.errors import UserError
    from inlay.solver import Limit, front

    seconds = seconds_of(time_limit)
    subject = open_subject(source, minimize, pairs)
    asked = [parse_asked(text) for text in limit]
    axes = [_axis(subject, each, points) for each in asked if each.range]
    if not 1 <= len(axes) <= 2:
        raise UserError(f"--limit: {len(axes)} limits have a range; sweep one or two, such as runtime=0.3x..0.9x")
    fixed = [found for each in asked if not each.range for found in subject.limits(each)]
    problem = limited(subject, fixed)
    with told_to_user():
        found = front(problem, axes, gap=gap, time_limit=seconds)
    if all(point.solution.objective is None for point in found):
        widest = found[-1]
        limits = [Limit(name, upper=value) for name, value in widest.limits.items()]
        give_up(subject, limited(subject, [*fixed, *limits]), widest.solution, seconds, as_json)
    if as_json:
        told: dict[str, Any] = {"source": subject.source, "minimize": subject.score.name}
        told["limits"] = answers.limits_dict(subject, problem)
        told["points"] = [
            {
                "limits": {name: subject.columns[name].value(value) for name, value in point.limits.items()},
                "dominated": point.dominated,
                **answers.solution_dict(subject, point.solution),
            }
            for point in found
        ]
        print_json(told)
        return
    print_rich(_table(subject, found, [axis.name for axis in axes]))
    beaten = sum(point.dominated for point in found)
    if beaten:
        print(f"{beaten} marked -: another point is at least as good and costs no more.")


def _axis(subject: Subject, asked: Asked, points: int) -> Axis:
    """A range of the command line in the solver's integers; UserError when it cannot be swept."""
    from dataclasses import replace

    from inlay.solver import Axis

    assert asked.range is not None
    ends: list[int | None] = []
    name = asked.name
    if asked.lower:
        raise asked.refuse("a sweep goes through upper limits; write NAME=FROM..TO")
    for value in asked.range:
        limits = subject.limits(replace(asked, value=value or "1x")) if value or name not in subject.columns else []
        if len(limits) > 1:
            raise asked.refuse(f"it holds in several scenarios; name one, such as {limits[0].name}")
        if limits and asked.name.rpartition(".")[2] != limits[0].name.rpartition(".")[2]:
            raise asked.refuse(f"`{asked.name}` cannot be swept; sweep `{limits[0].name}`")
        ends.append(limits[0].upper if limits and value else None)
        name = limits[0].name if limits else name
    if ends[0] is not None and ends[1] is not None and ends[0] > ends[1]:
        raise asked.refuse("the range goes down; write the smaller value first")
    return Axis(name, points=points, lowest=ends[0], highest=ends[1])


def _table(subject: Subject, found: list[FrontPoint], names: list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(f"{name} <=", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for name in (subject.score.name.replace("predicted_kl_nats", "predicted KL"), "gap"):
        table.add_column(name, justify="right")
    table.add_column("")
    for point in found:
        solution = point.solution
        row = [subject.columns[name].show(point.limits[name]) for name in names]
        if solution.objective is None:
            table.add_row(*row, *("" for _ in names), "", "", solution.status, style="dim")
            continue
        for name in names:
            total = solution.totals[name]
            ratio = subject.ratio(name, total)
            row.append(subject.columns[name].show(total) if ratio is None else f"{ratio:.3f}x")
        gap = f"{100 * solution.gap:.2g} %" if solution.gap else ""
        table.add_row(*row, subject.score.show(solution.objective), gap, "-" if point.dominated else "")
    return table
