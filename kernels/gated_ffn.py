"""The SiLU-gated ffn in two forms: as a function, and as its error with the gradients of its weights.

Both go tile by tile, so that the element-wise passes find a tile in the core's cache. The error form goes forward and
backward through one tile before it takes the next, and so keeps no activations at all.

Shapes: N tokens, D model width, F ffn width; n tokens of one tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.kernels.tiles import token_tiles
from inlay.kernels.update_error import accumulate_error_


def gated_ffn(input_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """(silu(x·gateᵀ) * x·upᵀ)·downᵀ, [N, D]; the only gradient is the input's (weights: gated_ffn_error)."""
    result: Tensor = _GatedFfn.apply(input_ND, gate_FD, up_FD, down_DF)  # type: ignore[no-untyped-call]
    return result


def gated_ffn_error(
    input_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, answer_ND: Tensor, scale: Tensor
) -> Tensor:
    """update_mse of gated_ffn against `answer_ND`, a scalar; gradients go to the three weights alone."""
    result: Tensor = _GatedFfnError.apply(  # type: ignore[no-untyped-call]
        input_ND, gate_FD, up_FD, down_DF, answer_ND, scale, torch.is_grad_enabled()
    )
    return result


class _GatedFfn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        output_ND = torch.empty_like(input_ND)
        for tile in token_tiles(input_ND, len(gate_FD)):
            middle_nF = torch.mm(input_ND[tile], gate_FD.T)
            torch.ops.aten.silu_(middle_nF)
            middle_nF.mul_(torch.mm(input_ND[tile], up_FD.T))
            torch.mm(middle_nF, down_DF.T, out=output_ND[tile])
        ctx.save_for_backward(input_ND, gate_FD, up_FD, down_DF)
        return output_ND

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        input_ND, gate_FD, up_FD, down_DF = ctx.saved_tensors
        grad_input_ND = torch.empty_like(input_ND)
        for tile in token_tiles(input_ND, len(gate_FD)):
            gate_nF = torch.mm(input_ND[tile], gate_FD.T)
            grad_up_nF = torch.mm(grad_outputs[0][tile], down_DF)
            grad_gate_nF = torch.mm(input_ND[tile], up_FD.T).mul_(grad_up_nF)
            grad_up_nF.mul_(torch.ops.aten.silu(gate_nF))
            torch.ops.aten.silu_backward.grad_input(grad_gate_nF, gate_nF, grad_input=grad_gate_nF)
            torch.mm(grad_gate_nF, gate_FD, out=grad_input_ND[tile])
            grad_input_ND[tile].addmm_(grad_up_nF, up_FD)
        return grad_input_ND, None, None, None


class _GatedFfnError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_ND: Tensor,
        gate_FD: Tensor,
        up_FD: Tensor,
        down_DF: Tensor,
        answer_ND: Tensor,
        scale: Tensor,
        with_gradients: bool,
    ) -> Tensor:
        error = torch.zeros_like(scale)
        totals = [torch.zeros_like(weight) for weight in (gate_FD, up_FD, down_DF)] if with_gradients else []
        tiles = token_tiles(input_ND, max(gate_FD.shape))
        gate, up, active, middle = (input_ND.new_empty(tiles[0].stop, len(gate_FD)) for _ in range(4))
        update = torch.empty_like(input_ND[tiles[0]])
        for tile in tiles:
            input_nD = input_ND[tile]
            rows = slice(0, len(input_nD))
            gate_nF = torch.mm(input_nD, gate_FD.T, out=gate[rows])
            up_nF = torch.mm(input_nD, up_FD.T, out=up[rows])
            active_nF = torch.ops.aten.silu.out(gate_nF, out=active[rows])
            middle_nF = torch.mul(active_nF, up_nF, out=middle[rows])
            update_nD = torch.mm(middle_nF, down_DF.T, out=update[rows])
            grad_nD = accumulate_error_(error, update_nD, answer_ND[tile], scale)
            if not with_gradients:
                continue
            totals[2].addmm_(grad_nD.T, middle_nF)
            grad_middle_nF = torch.mm(grad_nD, down_DF, out=middle_nF)
            up_nF.mul_(grad_middle_nF)
            grad_gate_nF = torch.ops.aten.silu_backward.grad_input(up_nF, gate_nF, grad_input=up_nF)
            totals[0].addmm_(grad_gate_nF.T, input_nD)
            totals[1].addmm_(grad_middle_nF.mul_(active_nF).T, input_nD)
        ctx.save_for_backward(*totals)
        return error

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate_FD, up_FD, down_DF = (total * grad_outputs[0] for total in ctx.saved_tensors)
        return None, gate_FD, up_FD, down_DF, None, None, None
