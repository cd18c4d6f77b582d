"""A Transformers folder whose matrices are stored in formats of compressed-tensors, as vLLM loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.nas.engines.compressed_checkpoint import KEY, matrix_formats, quantization_config, stored_tensors
from inlay.nas.engines.vllm_formats import ON_CPU, format_problem
from inlay.nas.errors import UserError
from inlay.nas.export.card import card
from inlay.nas.export.folder import written_whole
from inlay.nas.export.hf import write_all_but_weights
from inlay.nas.export.tensors import write_tensors
from inlay.nas.families import Parent, Shape
from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.job import Job
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import FORMAT, SLOTS
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.pieces.stored_rows import stored_rows
from inlay.nas.tables.architecture import Blocks
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import INPUTS_FILE, Workspace


def check_compressed(parent: Parent, architecture: Blocks, form: str) -> None:
    """Raises UserError naming every subblock that cannot be stored so; arguments as of `write_compressed_folder`."""
    entries = _entries(parent.shape, architecture, form)
    problems = [
        f"layer {layer}: {problem}"
        for layer, block in enumerate(entries)
        for slot in SLOTS
        if FORMAT in block[slot] and (problem := format_problem(block[slot], slot, parent.shape))
    ]
    if problems:
        raise UserError("--format compressed-tensors: " + "\n  ".join(problems))
    if not any(FORMAT in entry for block in entries for entry in block.values()):
        raise UserError(
            "--format compressed-tensors: the search chose no formats; say by --type how all subblocks are stored, "
            f"{', '.join(COMPRESSED)}"
        )


def write_compressed_folder(
    place: Workspace,
    parent: Parent,
    model: TrainedModel,
    output: Path,
    evaluation: Mapping[str, Any],
    job: Job,
    form: str,
) -> Path:
    """Writes a model folder, whole or not at all.

    Args:
        place: the search.
        parent: its parent.
        model: the child.
        output: the folder.
        evaluation: figures by model, and which of them is `chosen`.
        job: the search's.
        form: one of `COMPRESSED`, for every subblock whose label names none; "": they stay as they are.

    Raises:
        UserError: the parent's type does not hold a scale.
    """
    import torch

    blocks = _entries(parent.shape, model.architecture, form)
    formats = matrix_formats(parent.shape, blocks)
    inputs, dtype = str(place.find_json(INPUTS_FILE) or ""), getattr(torch, parent.shape.dtype)
    text = card(evaluation, job, "vllm", _use({held.name for held in formats.values() if held}))
    files, rows = ModelFiles(place.store, model.blob), stored_rows(place.store, parent.shape, model, inputs)
    with written_whole(output) as folder:
        write_all_but_weights(folder, parent, model, text, job, {KEY: quantization_config(formats)})
        write_tensors(folder, stored_tensors(files, files.__getitem__, formats, rows, dtype))
        place.check_held()
    return output


def _entries(shape: Shape, architecture: Blocks, form: str) -> list[dict[str, Any]]:
    """The config's blocks, each subblock that is there with its own format or, unless "", with this one."""
    return [
        {
            slot: entry if not form or FORMAT in entry or SUBBLOCKS.of(entry).absent else {**entry, FORMAT: form}
            for slot, entry in block.items()
        }
        for block in entries_of(shape, architecture)
    ]


def _use(forms: set[str]) -> list[str]:
    elsewhere = sorted(forms - set(ON_CPU))
    gpu = [f"vLLM has code for {' and '.join(elsewhere)} on GPUs alone.", ""] if elsewhere else []
    return [
        "## Run it",
        "",
        "```console",
        "$ pip install vllm && pip install --no-deps inlay",
        "$ vllm serve FOLDER",
        "```",
        "",
        *gpu,
        f"Matrices are stored as compressed-tensors does: {', '.join(sorted(forms))}. Activations are as without.",
    ]
