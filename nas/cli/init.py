"""`inlay init`: an annotated job file to start from, fitted to the parent where one is given."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from inlay.nas.families import Shape

DEMO: dict[str, Any] = {
    "parent": "inlay:pystdlib",
    "data": {
        "distill": {"path": "inlay:pystdlib/train", "sequence_length": 256},
        "validate": {"path": "inlay:pystdlib/held_out", "tokens": 6_000},
    },
    "space": {
        "attention": [{"kv_heads": 1}, {"window": 64}, "linear", "no_op"],
        "ffn": [{"width": 0.75}, {"width": 0.5}, {"width": 0.25}, "linear", "no_op"],
    },
    "distill": {"tokens": 32_000},
    "hardware": {"scenarios": [{"name": "chat", "batch_size": 4, "prefill": 128, "generate": 24}]},
    "budget": {"runtime": "0.54x"},
    "recover": {"tokens": 60_000, "batch_size": 2, "probes": 2},
    "tracking": {"experiment": "demo"},
}


def init_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write; `-` prints it.")] = "job.yaml",
    demo: Annotated[
        bool, typer.Option("--demo", help="The search of `make demo`: the parent and text that ship with inlay.")
    ] = False,
    parent: Annotated[
        str | None, typer.Option("--parent", help="Folder or hub id; the search space is fitted to it.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Text to train on (.txt or .jsonl).")] = None,
    held_out: Annotated[str | None, typer.Option("--held-out", help="Text to judge on, never trained on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write an annotated job file: every key, its meaning and default."""
    from inlay.nas.cli.template import job_text
    from inlay.nas.errors import UserError

    if demo and (parent or text or held_out):
        raise UserError("--demo brings its own parent and text; leave out --parent, --text and --held-out")
    target = Path(file)
    if file != "-" and target.exists() and not force:
        raise UserError(f"{file} is already there; give another name, or --force to overwrite it")
    folder = Path.cwd() if file == "-" else target.absolute().parent
    content = job_text(DEMO if demo else fitted_values(parent, text, held_out, folder))
    if file == "-":
        sys.stdout.write(content)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name a place that you may write to") from None
    print(f"wrote {file}; next: inlay validate {file}")


def fitted_values(parent: str | None, text: str | None, held_out: str | None, folder: Path) -> dict[str, Any]:
    """Values for a job in `folder`; alternatives, sequence length and scenario suit the parent, if it is there."""
    values: dict[str, Any] = {
        "parent": _beside(parent, folder) if parent else "./parent",
        "data": {
            "distill": {"path": _beside(text, folder) if text else "train.txt"},
            "validate": {"path": _beside(held_out, folder) if held_out else "held_out.txt"},
        },
        "space": {
            "attention": [{"kv_heads": 1}, {"window": 128}, "linear", "no_op"],
            "ffn": [{"width": 0.75}, {"width": 0.5}, {"width": 0.25}, "linear", "no_op"],
        },
        "budget": {"runtime": "0.6x"},
    }
    if parent and Path(parent).expanduser().exists():
        from inlay.nas.families import open_source

        return values | _for_shape(values, open_source(parent).shape)
    return values


def _for_shape(values: dict[str, Any], shape: Shape) -> dict[str, Any]:
    context = shape.max_positions
    own = [shape.parent_entry(layer, "attention") for layer in range(shape.num_layers)]
    most = max((entry["kv_heads"] for entry in own if "kv_heads" in entry), default=1)
    heads = [{"kv_heads": n} for n in range(most - 1, 0, -1) if most % n == 0][:3]
    narrowest = min((entry["window"] for entry in own if "window" in entry), default=context)
    windows = [{"window": size} for size in (1024, 128, 32) if size < narrowest and size <= context // 2][-1:]
    length, half = min(256, context), min(128, context // 2)
    data = values["data"]
    return {
        "data": data | {"distill": data["distill"] | {"sequence_length": length}},
        "space": values["space"] | {"attention": [*heads, *windows, "linear", "no_op"]},
        "hardware": {"scenarios": [{"batch_size": 1, "prefill": half, "generate": half}]},
    }


def _beside(path: str, folder: Path) -> str:
    if ":" in path or not Path(path).expanduser().exists():
        return path
    absolute = Path(path).expanduser().absolute()
    relative = os.path.relpath(absolute, folder)
    return str(absolute) if relative.count("..") > 2 else relative
