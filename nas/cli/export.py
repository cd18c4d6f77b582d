"""`inlay export`: the child as a model folder for a runtime."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What can be written."""

    hf = "hf"
    deci = "deci"
    gguf = "gguf"
    compressed_tensors = "compressed-tensors"
    packed = "packed"


class Consumer(StrEnum):
    """Who reads DeciLM folders."""

    vllm = "vllm"
    tensorrt_llm = "tensorrt-llm"
    sglang = "sglang"
    mlx = "mlx"


def export_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="WORKSPACE", help="The folder or URL that `inlay run` printed, or models:/NAME@ALIAS of MLflow."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must be empty or not there.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="hf: a Transformers folder. deci: a DeciLM folder (nemotron-nas). gguf: for llama.cpp. "
            "compressed-tensors: a Transformers folder with packed weights, for vLLM. packed: hf with 2:4 matrices "
            "packed.",
        ),
    ] = Format.hf,
    consumer: Annotated[
        Consumer | None, typer.Option("--for", help="Who will read the DeciLM folder: each wants sizes of its own.")
    ] = None,
    number_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="How a GGUF file stores numbers (default: as the search had it, else f16), or what compressed-tensors "
            "stores subblocks in whose format the search did not choose.",
        ),
    ] = None,
    solution: Annotated[
        str | None,
        typer.Option("--solution", help="child, uniform, depth, or a solution's id; default: the one that was chosen."),
    ] = None,
) -> None:
    """Write a child of a search as a model folder."""
    from inlay.nas.families.registered import is_registered
    from inlay.nas.stages.export import export_child, export_registered
    from inlay.nas.workspace import Workspace

    if is_registered(source):
        asked = {"for": None if consumer is None else consumer.value, "type": number_type, "solution": solution}
        print(export_registered(source, form.value, output, asked))
        return
    place = Workspace(source).last_round()
    place.require()
    options = {
        "for": None if consumer is None else consumer.value,
        "type": number_type,
    }
    print(export_child(place, form.value, output, solution=solution, options=options))
