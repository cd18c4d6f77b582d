"""The rows of a stored model's tensors as an engine's file has them: as training left them, else fitted or nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from inlay.cluster.store import Store
from inlay.nas.families import Shape
from inlay.nas.formats.format import Format
from inlay.nas.formats.tensors import packed
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.matrix_inputs import MatrixInputs
from inlay.nas.pieces.model_files import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.formats.format import Bytes

Rows = Callable[[str, Format], "Bytes"]


def stored_rows(store: Store, shape: Shape, model: TrainedModel, inputs: str) -> Rows:
    """By a tensor's whole-model name and its format.

    Args:
        store: has the model's blobs.
        shape: the parent's.
        model: whose tensors.
        inputs: the digest of what the parent's matrices read; "" without.
    """
    told = MatrixInputs.of(store, inputs).where_own(shape, model.architecture)
    own = ModelFiles(store, model.blob)
    trained: Mapping[str, Tensor] = ModelFiles(store, model.packed) if model.packed else {}

    def rows(name: str, form: Format) -> Bytes:
        if name in trained:
            found: Bytes = trained[name].numpy()
            return found
        tensor = own[name]
        return packed(tensor, form, told.get(name, tensor.shape[1]) if tensor.ndim == 2 else None)

    return rows
