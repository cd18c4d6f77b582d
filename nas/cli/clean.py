"""`inlay clean`: what a workspace could do without, and its removal."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, WorkspaceArgument, print_json


def clean_command(
    workspace: WorkspaceArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it; without this, only list it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what no result needs, with sizes; --yes drops it."""
    from inlay.nas.cli.leftovers import drop, held_leftovers
    from inlay.nas.quantities import show_bytes
    from inlay.nas.workspace import Workspace

    place = Workspace(workspace)
    place.require()
    with held_leftovers(place, lambda text: print(f"inlay: {text}", file=sys.stderr)) as found:
        if yes:
            drop(place, found)
    if as_json:
        print_json({"dropped": yes, "leftovers": [asdict(each) for each in found]})
        return
    for each in found:
        print(f"{show_bytes(each.size_bytes):>10}  {each.name}: {each.why}")
    total = show_bytes(sum(each.size_bytes for each in found))
    if not found:
        print("nothing to drop")
    elif yes:
        print(f"dropped {total}")
    else:
        print(f"{total} can be dropped; `inlay clean {workspace} --yes` drops it")
