"""`inlay doctor`: whether this machine can run a search, and what to do where it cannot."""

from __future__ import annotations

from dataclasses import asdict

import typer

from inlay.nas.cli.output import JsonOption, print_json, print_rich


def doctor_command(as_json: JsonOption = False) -> None:
    """Check versions, devices, memory, disk, MLflow and Ray.

    Exit code 1 says that something is broken.
    """
    from inlay.nas.cli.checkup import checkup

    checks = checkup()
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        marks = {"ok": "[green]ok[/]", "look": "[yellow]look[/]", "broken": "[red]broken[/]"}
        for check in checks:
            table.add_row(marks[check.state], check.name, check.text)
        print_rich(table)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)
