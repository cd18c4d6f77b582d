"""The rows of a stored model's tensors as an engine's file has them: as training left them, else fitted or nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from inlay.cluster.store import Store
from inlay.nas.families import Shape
from inlay.nas.formats.format import Format
from inlay.nas.formats.tensors import packed
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.matrix_inputs import MatrixInputs

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes

Rows = Callable[[str, Format], "Bytes"]


@contextmanager
def stored_rows(store: Store, shape: Shape, model: TrainedModel, inputs: str) -> Iterator[Rows]:
    """By a tensor's whole-model name and its format.

    Args:
        store: has the model's blobs.
        shape: the parent's.
        model: whose tensors.
        inputs: the digest of what the parent's matrices read; "" without.
    """
    from safetensors import safe_open

    told = MatrixInputs.of(store, inputs).where_own(shape, model.architecture)
    with ExitStack() as stack:
        own = stack.enter_context(safe_open(store.blob_path(model.blob), framework="pt"))
        rounded = stack.enter_context(safe_open(store.blob_path(model.packed), "np")) if model.packed else None
        trained = set(rounded.keys()) if rounded is not None else set()

        def rows(name: str, form: Format) -> Bytes:
            if rounded is not None and name in trained:
                found: Bytes = rounded.get_tensor(name)
                return found
            tensor = own.get_tensor(name)
            return packed(tensor, form, told.get(name, tensor.shape[1]) if tensor.ndim == 2 else None)

        yield rows
