"""Rounding of torch tensors: as a value, and as a step of training that gradients pass unchanged."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.nas.formats.format import Format
from inlay.nas.formats.kept import KeptRounding


def rounded(
    weights: Tensor, form: Format, importance: Tensor | None = None, kept: KeptRounding | None = None
) -> Tensor:
    """What the engine computes with in place of `weights` [..., row], float32 on their device.

    Args:
        weights: the numbers as they are stored.
        form: their format.
        importance: [row], as `Format.pack` takes it.
        kept: where what was rounded before lies; None: nothing is kept.

    Raises:
        UserError: numbers that are not finite, as `Format.pack`.
    """
    round_numbers = form.rounded if kept is None else partial(kept.rounded, form)
    numbers = round_numbers(_numbers(weights), None if importance is None else _numbers(importance))
    return torch.from_numpy(numbers).to(weights.device)


def straight_through(weights: Tensor, form: Format, importance: Tensor | None = None) -> Tensor:
    """`rounded` in the dtype of `weights`, whose gradient is that of what it gives (Bengio et al., arXiv 1308.3432)."""
    found: Tensor = _StraightThrough.apply(weights, form, importance)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, form: Format, importance: Tensor | None) -> Tensor:
        return rounded(weights, form, importance).to(weights.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def _numbers(tensor: Tensor) -> "np.typing.NDArray[np.float32]":
    numbers: np.typing.NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return numbers
