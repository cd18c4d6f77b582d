"""Rounding of torch tensors: to bytes, and as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.nas.formats.fitting import fitted
from inlay.nas.formats.format import Format
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.kept import KeptRounding

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes


def packed(weights: Tensor, form: Format, inputs: Inputs | None = None, kept: KeptRounding | None = None) -> Bytes:
    """The bytes of `weights` [..., row] in a format.

    Args:
        weights: the numbers as they are stored; a matrix where inputs are given.
        form: their format.
        inputs: where they are known, codes are chosen so that the outputs change least; else each by itself.
        kept: where what was rounded before lies; None: nothing is kept.

    Raises:
        UserError: numbers that are not finite, as `Format.pack`.
    """
    own = weights.detach().float().cpu().contiguous()
    # What cannot be fitted is rounded number by number, whatever reads it.
    chosen = inputs if form.can_fit else None

    def pack() -> Bytes:
        return form.pack(own.numpy()) if chosen is None else fitted(own, form, chosen)

    return pack() if kept is None else kept.packed(own.numpy(), form, chosen.name if chosen else "", pack)


def rounded(weights: Tensor, form: Format, inputs: Inputs | None = None, kept: KeptRounding | None = None) -> Tensor:
    """What the engine computes with in place of `weights`, float32 on their device; all else as `packed`."""
    return _numbers(packed(weights, form, inputs, kept), form, weights)


def weighed(weights: Tensor, form: Format, inputs: Inputs, kept: KeptRounding | None = None) -> Tensor:
    """`rounded` as llama.cpp's own quantiser does with an importance matrix: each block by itself, channels weighed."""
    own, importance = weights.detach().float().cpu().contiguous().numpy(), inputs.importance_C.numpy()

    def pack() -> Bytes:
        return form.pack(own, importance)

    return _numbers(pack() if kept is None else kept.packed(own, form, f"weighed {inputs.name}", pack), form, weights)


def _numbers(stored: Bytes, form: Format, like: Tensor) -> Tensor:
    numbers: np.typing.NDArray[np.float32] = form.unpack(stored, like.shape[-1])
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device)
