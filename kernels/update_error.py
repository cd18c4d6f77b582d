"""The error of a subblock: how far its update is from the parent's, relative to adding nothing.

Shapes: any, the same for both tensors; by habit B batch, S sequence, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.kernels.tiles import token_tiles


def update_mse(update: Tensor, parent_update: Tensor, scale: Tensor | None = None) -> Tensor:
    """MSE(u, u_parent) / MSE(u_parent, 0) as a scalar: 0 for the parent's own update, exactly 1 for a no-op.

    Sums run in float32 (float64 for float64 input). The gradient goes to `update` alone. `scale` is
    `update_scale(parent_update)` where a caller has it already. A parent update that is zero everywhere has no scale
    to compare with: the result is then inf or nan.

    Raises:
        ValueError: the two shapes differ.
    """
    if update.shape != parent_update.shape:
        raise ValueError(
            f"`update` has shape {tuple(update.shape)} but `parent_update` has {tuple(parent_update.shape)}: "
            "the two must come from the same tokens of the same layer"
        )
    if scale is None:
        scale = update_scale(parent_update)
    result: Tensor = _UpdateMse.apply(update, parent_update, scale)  # type: ignore[no-untyped-call]
    return result


def update_scale(parent_update: Tensor) -> Tensor:
    """The sum of squares that update_mse divides by, as a scalar in at least float32."""
    return parent_update.to(torch.promote_types(torch.float32, parent_update.dtype)).square().sum()


def linear_error(input_ND: Tensor, weight_OD: Tensor, answer_NO: Tensor, scale: Tensor) -> Tensor:
    """update_mse of input·weightᵀ against `answer_NO`, a scalar; the only gradient is the weight's.

    Goes forward and backward tile by tile and keeps no activations.
    """
    result: Tensor = _LinearError.apply(  # type: ignore[no-untyped-call]
        input_ND, weight_OD, answer_NO, scale, torch.is_grad_enabled()
    )
    return result


def accumulate_error_(error: Tensor, update_nD: Tensor, answer_nD: Tensor, scale: Tensor) -> Tensor:
    """Adds one tile's part of update_mse to `error`; turns the update in place into the error's gradient by it."""
    difference_nD = update_nD.sub_(answer_nD)
    error += difference_nD.square().sum() / scale
    return difference_nD.mul_(2.0 / scale)


class _LinearError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_ND: Tensor, weight_OD: Tensor, answer_NO: Tensor, scale: Tensor, with_gradients: bool
    ) -> Tensor:
        error = torch.zeros_like(scale)
        total_OD = torch.zeros_like(weight_OD)
        for tile in token_tiles(input_ND, max(weight_OD.shape)):
            grad_nO = accumulate_error_(error, torch.mm(input_ND[tile], weight_OD.T), answer_NO[tile], scale)
            if with_gradients:
                total_OD.addmm_(grad_nO.T, input_ND[tile])
        ctx.save_for_backward(total_OD)
        return error

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None, None, None]:
        (total_OD,) = ctx.saved_tensors
        return None, total_OD * grad_outputs[0], None, None, None


class _UpdateMse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, update: Tensor, parent_update: Tensor, scale: Tensor) -> Tensor:
        wide = torch.promote_types(torch.float32, update.dtype)
        difference = update.to(wide) - parent_update.to(wide)
        ctx.save_for_backward(difference, scale)
        ctx.dtype = update.dtype
        return difference.square().sum() / scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        difference, scale = ctx.saved_tensors
        return (difference * (2.0 * grad_outputs[0] / scale)).to(ctx.dtype), None, None
