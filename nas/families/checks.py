"""Whether a parent's tensors are the ones that its config.json asks for, and hold numbers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.errors import UserError
from inlay.nas.families.checkpoint import Checkpoint
from inlay.nas.families.shape import EMBEDDING, HEAD, SLOTS, Shape, ends_tensors, layer_prefix, subblock_tensors

if TYPE_CHECKING:
    from torch import Tensor

_OLD_BUFFER: Final = "rotary_emb.inv_freq"
"""Older checkpoints store this constant in every layer; nobody reads it."""


def check_tensors(checkpoint: Checkpoint, shape: Shape) -> None:
    """Raise `UserError` naming a tensor that is missing, misshapen, or that such a layer does not have."""
    wanted: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.num_layers):
        for slot in SLOTS:
            tensors = subblock_tensors(shape, slot, shape.parent_entry(layer, slot))
            wanted |= {layer_prefix(layer) + name: size for name, size in tensors.items()}
        _check_nothing_else(checkpoint.tensors, layer_prefix(layer), wanted, shape)
    for name, size in (wanted | ends_tensors(shape)).items():
        stored = checkpoint.tensors.get(stored_name(checkpoint, name) if shape.tied else name)
        if stored is None:
            raise UserError(
                f"parent: the weights in `{checkpoint.folder}` lack the tensor `{name}` "
                f"that config.json ({shape.family}, {shape.num_layers} layers) asks for; copy the folder again."
            )
        if stored.shape != size:
            raise UserError(
                f"parent: the tensor `{name}` in `{stored.file}` has the shape {list(stored.shape)} "
                f"where config.json asks for {list(size)}; put the weights and config.json of one model there."
            )


def check_finite(state: "Mapping[str, Tensor]", prefix: str, place: str, dtype: str) -> None:
    """Raise `UserError` naming the first tensor of `state` that is not finite; `place` says where it is."""
    for name, tensor in state.items():
        count = tensor.numel() - int(tensor.isfinite().sum())
        if count:
            raise UserError(
                f"parent: the tensor `{prefix}{name}` {place} has {count:,} of {tensor.numel():,} numbers "
                f"that are NaN or infinite in {dtype}; get sound weights from the model's source."
            )


def stored_name(checkpoint: Checkpoint, name: str) -> str:
    """The name in the file of the tensor `name`: a tied embedding may be stored as the head alone."""
    return HEAD if name == EMBEDDING and name not in checkpoint.tensors else name


def _check_nothing_else(stored: Mapping[str, Any], prefix: str, wanted: Mapping[str, Any], shape: Shape) -> None:
    for name in stored:
        if name.startswith(prefix) and name not in wanted and not name.endswith(_OLD_BUFFER):
            raise UserError(
                f"parent: the weights hold the tensor `{name}`, which a {shape.family} of this config.json "
                "does not have; put the weights and config.json of one model there."
            )
