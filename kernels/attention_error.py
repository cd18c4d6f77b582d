"""The error of a whole attention mixer with the gradients of its weights, a few sequences at a time.

Forward and backward of one tile of sequences follow each other while everything is in the core's cache, and no
activations outlive the tile.

Shapes: B batch, b sequences of one tile, S sequence, D model width, H query heads, G key-value heads, K head size,
O = (H + 2G)·K outputs of the joint projection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from inlay.kernels.banded_attention import BandedPass, Block, band_blocks
from inlay.kernels.rotary import rotate_back_into, rotate_into
from inlay.kernels.update_error import accumulate_error_

TILE_TOKENS = 1024
"""Tokens of a tile, in whole sequences: little enough for a cache, enough to be worth the calls."""


class AttentionShape(NamedTuple):
    """What an attention mixer is, besides its weights."""

    head_size: int
    """K."""
    scale: float
    """Of the scores before the softmax."""
    window: int | None
    """Keys a query sees, itself included; None for all before it."""
    sinks: int
    """First keys that every query sees besides."""


def attention_error(
    input_BSD: Tensor,
    joint_OD: Tensor,
    joint_bias_O: Tensor | None,
    out_DH: Tensor,
    rotary: tuple[Tensor, Tensor],
    shape: AttentionShape,
    answer_BSD: Tensor,
    scale: Tensor,
) -> Tensor:
    """update_mse of an attention mixer against `answer_BSD`, a scalar; gradients go to its weights and bias alone.

    `joint_OD` has the query, key and value projections below each other, `out_DH` is the output projection [D, H·K];
    `rotary` is cos and sin, [1, S, K] each.
    """
    result: Tensor = _AttentionError.apply(  # type: ignore[no-untyped-call]
        input_BSD, joint_OD, joint_bias_O, out_DH, rotary, shape, answer_BSD, scale, torch.is_grad_enabled()
    )
    return result


class _AttentionError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_BSD: Tensor,
        joint_OD: Tensor,
        joint_bias_O: Tensor | None,
        out_DH: Tensor,
        rotary: tuple[Tensor, Tensor],
        shape: AttentionShape,
        answer_BSD: Tensor,
        scale: Tensor,
        with_gradients: bool,
    ) -> Tensor:
        sequence = input_BSD.shape[1]
        error = torch.zeros_like(scale)
        total_joint_OD, total_out_DH = torch.zeros_like(joint_OD), torch.zeros_like(out_DH)
        total_bias_O = None if joint_bias_O is None else torch.zeros_like(joint_bias_O)
        num_heads = out_DH.shape[1] // shape.head_size
        blocks = band_blocks(input_BSD, sequence, shape.window, shape.sinks)
        size = max(1, TILE_TOKENS // sequence)
        for first in range(0, len(input_BSD), size):
            input_nD = input_BSD[first : first + size].flatten(0, 1)
            joint_nO = torch.mm(input_nD, joint_OD.T)
            if joint_bias_O is not None:
                joint_nO += joint_bias_O
            run = _attend(joint_nO.view(-1, sequence, len(joint_OD)), num_heads, rotary, shape, blocks)
            mixed_nH = run.forward(with_gradients).view(len(input_nD), -1)
            answer_nD = answer_BSD[first : first + size].flatten(0, 1)
            grad_nD = accumulate_error_(error, torch.mm(mixed_nH, out_DH.T), answer_nD, scale)
            if not with_gradients:
                continue
            total_out_DH.addmm_(grad_nD.T, mixed_nH)
            grad_BSHK = torch.mm(grad_nD, out_DH).view_as(run.output_BSHK)
            grad_joint_nO = _attend_back(run, grad_BSHK, joint_nO, rotary, shape)
            total_joint_OD.addmm_(grad_joint_nO.T, input_nD)
            if total_bias_O is not None:
                total_bias_O += grad_joint_nO.sum(0)
        ctx.save_for_backward(total_joint_OD, total_bias_O, total_out_DH)
        return error

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        joint_OD, bias_O, out_DH = (None if t is None else t * grad_outputs[0] for t in ctx.saved_tensors)
        return None, joint_OD, bias_O, out_DH, None, None, None, None, None


def _attend(
    joint_bSO: Tensor, num_heads: int, rotary: tuple[Tensor, Tensor], shape: AttentionShape, blocks: list[Block]
) -> BandedPass:
    """Rotated and scaled queries, rotated keys, and values, ready to attend."""
    joint_bCSK = joint_bSO.view(*joint_bSO.shape[:2], -1, shape.head_size).transpose(1, 2)
    num_groups = (joint_bCSK.shape[1] - num_heads) // 2
    cos, sin = rotary[0][:, None], rotary[1][:, None]
    query, key, value_bGSK = torch.split(joint_bCSK, [num_heads, num_groups, num_groups], dim=1)
    query_bHSK = torch.empty_like(query, memory_format=torch.contiguous_format)
    key_bGSK = torch.empty_like(key, memory_format=torch.contiguous_format)
    rotate_into(query_bHSK, query, cos * shape.scale, sin * shape.scale)
    rotate_into(key_bGSK, key, cos, sin)
    return BandedPass(query_bHSK, key_bGSK, value_bGSK.contiguous(), blocks)


def _attend_back(
    run: BandedPass, grad_bSHK: Tensor, joint_nO: Tensor, rotary: tuple[Tensor, Tensor], shape: AttentionShape
) -> Tensor:
    """The gradient of the joint projection's outputs, written over them."""
    query_bHSK, key_bGSK, value_bGSK = run.backward(grad_bSHK)
    cos, sin = rotary[0][:, :, None], rotary[1][:, :, None]
    joint_bSCK = joint_nO.view(*grad_bSHK.shape[:2], -1, shape.head_size)
    heads = [query_bHSK.shape[1], key_bGSK.shape[1], key_bGSK.shape[1]]
    query, key, value = torch.split(joint_bSCK, heads, dim=2)
    rotate_back_into(query, query_bHSK.transpose(1, 2), cos * shape.scale, sin * shape.scale)
    rotate_back_into(key, key_bGSK.transpose(1, 2), cos, sin)
    value.copy_(value_bGSK.transpose(1, 2))
    return joint_nO
