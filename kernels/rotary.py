"""Rotary position embedding without copies of half-heads, forward and backward.

Shapes: B batch, S sequence, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotate(tensor_BSHK: Tensor, cos_BSK: Tensor, sin_BSK: Tensor) -> Tensor:
    """x·cos + rotate_half(x)·sin of each head, as [B, H, S, K]; the batch of cos and sin may be 1.

    RoPE (arXiv 2104.09864, section 3.4) with a head's halves as pairs, as Llama-like models have it.
    """
    result: Tensor = _Rotate.apply(tensor_BSHK, cos_BSK, sin_BSK)  # type: ignore[no-untyped-call]
    return result


def rotate_into(output: Tensor, given: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Writes the rotation of `given` to `output`; all [..., K] of shapes that broadcast."""
    first, second = given.chunk(2, dim=-1)
    out_first, out_second = output.chunk(2, dim=-1)
    cos_first, cos_second = cos.chunk(2, dim=-1)
    sin_first, sin_second = sin.chunk(2, dim=-1)
    torch.mul(first, cos_first, out=out_first).addcmul_(second, sin_first, value=-1)
    torch.mul(second, cos_second, out=out_second).addcmul_(first, sin_second)


def rotate_back_into(output: Tensor, given: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Writes the transpose of the rotation, applied to `given`, to `output`; as in rotate_into."""
    first, second = given.chunk(2, dim=-1)
    out_first, out_second = output.chunk(2, dim=-1)
    cos_first, cos_second = cos.chunk(2, dim=-1)
    sin_first, sin_second = sin.chunk(2, dim=-1)
    torch.mul(first, cos_first, out=out_first).addcmul_(second, sin_second)
    torch.mul(second, cos_second, out=out_second).addcmul_(first, sin_first, value=-1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_BSHK: Tensor, cos_BSK: Tensor, sin_BSK: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BSK, sin_BSK)
        batch, sequence, heads, size = tensor_BSHK.shape
        output_BHSK = tensor_BSHK.new_empty(batch, heads, sequence, size)
        rotate_into(output_BHSK, tensor_BSHK.transpose(1, 2), cos_BSK[:, None], sin_BSK[:, None])
        return output_BHSK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos_BSK, sin_BSK = ctx.saved_tensors
        grad_BSHK = grad_outputs[0].new_empty(grad_outputs[0].transpose(1, 2).shape)
        rotate_back_into(grad_BSHK, grad_outputs[0].transpose(1, 2), cos_BSK[:, :, None], sin_BSK[:, :, None])
        return grad_BSHK, None, None
