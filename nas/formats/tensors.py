"""Rounding of torch tensors: as a value, and as a step of training that gradients pass unchanged."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.nas.formats.format import Format


def rounded(weights: Tensor, form: Format, importance: Tensor | None = None) -> Tensor:
    """What the engine computes with in place of `weights` [..., row], float32 on their device.

    Raises:
        UserError: numbers that are not finite, as `Format.pack`.
    """
    numbers = form.rounded(_numbers(weights), None if importance is None else _numbers(importance))
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
