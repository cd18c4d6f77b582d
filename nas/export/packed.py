"""A Transformers folder whose 2:4 matrices are packed, in the file as in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.nas.engines.sparse_checkpoint import packed_matrices, stored_tensors
from inlay.nas.errors import UserError
from inlay.nas.export.folder import written_whole
from inlay.nas.export.hf import hf_card, write_all_but_weights
from inlay.nas.export.tensors import write_tensors
from inlay.nas.families import Parent
from inlay.nas.formats.sparse import SPARSE
from inlay.nas.job import Job
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.pieces.stored_rows import stored_rows
from inlay.nas.tables.architecture import Blocks
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import INPUTS_FILE, Workspace


def check_packed(parent: Parent, architecture: Blocks) -> None:
    """Raises UserError for a child of which nothing is in 2:4, or something in a format that is not packed so."""
    told = {e[FORMAT] for block in entries_of(parent.shape, architecture) for e in block.values() if FORMAT in e}
    if other := sorted(told - set(SPARSE)):
        raise UserError(
            f"--format packed: {', '.join(other)} cannot stay packed in PyTorch, only {', '.join(SPARSE)}; write the "
            "engine's own, --format gguf or compressed-tensors"
        )
    if not told:
        raise UserError(f"--format packed: nothing of this child is in {', '.join(SPARSE)}; write --format hf")


def write_packed_folder(
    place: Workspace, parent: Parent, model: TrainedModel, output: Path, evaluation: Mapping[str, Any], job: Job
) -> Path:
    """Writes a model folder, whole or not at all; arguments as of `export.compressed.write_compressed_folder`."""
    blocks = entries_of(parent.shape, model.architecture)
    formats = packed_matrices(parent.shape, blocks)
    inputs = str(place.find_json(INPUTS_FILE) or "")
    files, rows = ModelFiles(place.store, model.blob), stored_rows(place.store, parent.shape, model, inputs)
    with written_whole(output) as folder:
        text = hf_card(evaluation, job)
        write_all_but_weights(folder, parent, model, text, job, {"blocks": blocks, "packed": True})
        write_tensors(folder, stored_tensors(files, files.__getitem__, formats, rows))
        place.check_held()
    return output
