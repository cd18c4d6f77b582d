"""`inlay measure`: the cost table of a job's space alone, on the machine that is going to run the child."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from inlay.nas.pieces.kept_times import KeptSet


def measure_command(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job file (YAML).", show_default=False)] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The table to write (.parquet or .csv).")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure again what this machine has measured before.")
    ] = False,
    list_kept: Annotated[bool, typer.Option("--list", help="Show the times that this machine keeps.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Drop the times that this machine keeps.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time a job's subblocks on this machine, for a search elsewhere.

    The table goes into the job as hardware.costs. Times are kept: none is taken twice.
    """
    from inlay.nas.errors import UserError

    if sum((job is not None, list_kept, clear)) != 1:
        raise UserError("measure takes a JOB with --output FILE, or --list, or --clear; see inlay measure --help")
    if job is None:
        if output is not None or again:
            option = "--output" if output is not None else "--again"
            raise UserError(f"{option}: goes with a JOB, which is missing; see inlay measure --help")
        if clear:
            _clear(as_json)
        else:
            _list(as_json)
    elif output is None:
        raise UserError("--output: is missing; name the table to write, such as costs.parquet")
    else:
        _measure(job, Path(output), again, as_json)


def _measure(job: str, output: Path, again: bool, as_json: bool) -> None:
    from inlay.nas.job import Job
    from inlay.nas.report.terminal import make_reporter
    from inlay.nas.tables.origin import check_place, write_costs

    loaded = Job.load(job)
    check_place(output)  # before minutes are spent
    with make_reporter() as reporter:
        from inlay.nas.stages.measure_alone import measure_alone

        measured = measure_alone(loaded, reporter, again=again)
    write_costs(output, measured.rows, measured.origin)
    if as_json:
        told = measured.origin.model_dump(mode="json")
        counts = {"rows": len(measured.rows), "timed": measured.timed, "kept": measured.kept}
        print_json({"output": str(output), **counts, **told})
        return
    origin = measured.origin
    print(f"{output}: {origin.engine} ({origin.format}) on {origin.device}; times of the space:", end=" ")
    print(f"{measured.timed} taken now, {measured.kept} from before")
    print(f"Search with it: hardware: {{costs: {output.name}}}")


def _list(as_json: bool) -> None:
    from inlay.nas.pieces.kept_times import kept_folder, kept_sets

    found = kept_sets()
    if as_json:
        print_json({"folder": str(kept_folder()), "kept": [asdict(each) for each in found]})
        return
    print("\n".join(map(_told, found)) if found else f"no times are kept in {kept_folder()}")


def _told(kept: KeptSet) -> str:
    """Two lines: what runs where, and what was measured of it."""
    from inlay.nas.quantities import show_bytes
    from inlay.nas.report.sentences import counted

    held = kept.conditions
    shape, workload = held.get("shape", {}), held.get("workload", {})
    base = shape.get("base", {})
    lines = "{engine} ({format}, {dtype}) on {device}\n  {family}, {hidden_size} wide, {num_attention_heads} heads; "
    lines += "{batch_size} x {prefill}+{generate} tokens, threads {threads}: "
    # What cannot be read, of another inlay's file, is told by a question mark.
    words = defaultdict(lambda: "?", {**held, **shape, **base, **workload})
    changed = kept.changed.replace("T", " ").removesuffix("+00:00")
    return lines.format_map(words) + f"{counted(kept.entries, 'time')}, {show_bytes(kept.size_bytes)}, {changed} UTC"


def _clear(as_json: bool) -> None:
    from inlay.nas.pieces.kept_times import drop_kept, kept_folder, kept_sets
    from inlay.nas.quantities import show_bytes
    from inlay.nas.report.sentences import counted

    found = kept_sets()
    drop_kept()
    entries, size = sum(each.entries for each in found), sum(each.size_bytes for each in found)
    if as_json:
        print_json({"folder": str(kept_folder()), "times": entries, "size_bytes": size})
    elif found:
        print(f"dropped {counted(entries, 'time')} of {counted(len(found), 'workload')}, {show_bytes(size)}")
    else:
        print(f"no times are kept in {kept_folder()}")
