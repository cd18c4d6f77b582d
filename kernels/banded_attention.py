"""Causal attention that computes the band it sees: windows with sinks, grouped heads, forward and backward by hand.

Queries go block by block, each against the keys that some query of the block sees, so a window costs what it sees
and a full causal layer half of the square. Probabilities are kept for the backward: memory is what is computed, not
S x S, which suits training on a CPU at moderate lengths (`banded_elements` says how much).

Shapes: B batch, H query heads, G key-value heads, R = H / G, S sequence, K head size; q queries and n keys of one
block; X = B·G batches of matrix products, Q = R·q their rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 64


class Block(NamedTuple):
    """Queries [first, end) against keys [0, sinks) and [low, end)."""

    first: int
    end: int
    low: int
    sinks: int
    bias_qn: Tensor
    """0 where a query sees a key, -inf elsewhere."""


def banded_attention(
    query_BHSK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor, scale: float, window: int | None = None, sinks: int = 0
) -> Tensor:
    """softmax(scale · QKᵀ over what each query sees) · V, [B, S, H, K]; gradients to all three.

    Query t sees key j if j <= t and, with a window, t - j < window or j < sinks. Heads [g·R, (g + 1)·R) share
    key-value head g.
    """
    blocks = band_blocks(query_BHSK, query_BHSK.shape[2], window, sinks)
    result: Tensor = _BandedAttention.apply(  # type: ignore[no-untyped-call]
        query_BHSK * scale, key_BGSK, value_BGSK, blocks
    )
    return result


def banded_elements(sequence: int, window: int | None = None, sinks: int = 0) -> int:
    """Scores that one head computes, and keeps for the backward."""
    spans = _spans(sequence, window, sinks)
    return sum((end - first) * (kept + end - low) for first, end, low, kept in spans)


def band_blocks(like: Tensor, sequence: int, window: int | None, sinks: int) -> list[Block]:
    """The blocks of a sequence, with biases of the type and on the device of `like`."""
    blocks = []
    for first, end, low, kept in _spans(sequence, window, sinks):
        query_q1 = torch.arange(first, end, device=like.device)[:, None]
        key_1n = torch.cat([torch.arange(kept), torch.arange(low, end)]).to(like.device)
        hidden_qn = key_1n > query_q1
        if window is not None:
            hidden_qn |= (query_q1 - key_1n >= window) & (key_1n >= sinks)
        bias_qn = like.new_zeros(hidden_qn.shape).masked_fill_(hidden_qn, float("-inf"))
        blocks.append(Block(first, end, low, kept, bias_qn))
    return blocks


@dataclass
class BandedPass:
    """One forward over query (scaled already), key and value, and what its backward needs."""

    query_BHSK: Tensor
    key_BGSK: Tensor
    value_BGSK: Tensor
    blocks: list[Block]
    output_BSHK: Tensor = field(init=False)
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    """Of each block: queries [X, Q, K], keys and values [X, n, K], probabilities [X, Q, n]."""

    def forward(self, keep: bool) -> Tensor:
        """The output [B, S, H, K]; `keep` what the backward needs."""
        batch, num_heads, sequence, size = self.query_BHSK.shape
        groups = self.key_BGSK.shape[1]
        shape = (batch * groups, -1, size)
        key_XSK, value_XSK = self.key_BGSK.flatten(0, 1), self.value_BGSK.flatten(0, 1)
        self.output_BSHK = self.query_BHSK.new_empty(batch, sequence, num_heads, size)
        for block in self.blocks:
            query_XQK = self.query_BHSK[:, :, block.first : block.end].reshape(shape)
            key_XnK, value_XnK = _keys(key_XSK, block), _keys(value_XSK, block)
            score_XQn = torch.bmm(query_XQK, key_XnK.mT)
            score_XQn.view(len(score_XQn), -1, *block.bias_qn.shape).add_(block.bias_qn)
            probability_XQn = torch.softmax(score_XQn, -1)
            part_XQK = torch.bmm(probability_XQn, value_XnK)
            rows_BGRqK = _rows(self.output_BSHK, block, groups)
            rows_BGRqK.copy_(part_XQK.view(rows_BGRqK.shape))
            if keep:
                self.kept.append((query_XQK, key_XnK, value_XnK, probability_XQn))
        return self.output_BSHK

    def backward(self, grad_BSHK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the scaled query [B, H, S, K], key and value [B, G, S, K]."""
        groups = self.key_BGSK.shape[1]
        mean_BSH1 = (grad_BSHK * self.output_BSHK).sum(-1, keepdim=True)
        grad_query_BHSK = torch.empty_like(self.query_BHSK, memory_format=torch.contiguous_format)
        grad_key_BGSK = torch.zeros_like(self.key_BGSK, memory_format=torch.contiguous_format)
        grad_value_BGSK = torch.zeros_like(grad_key_BGSK)
        for block, (query_XQK, key_XnK, value_XnK, probability_XQn) in zip(self.blocks, self.kept, strict=True):
            grad_XQK = _rows(grad_BSHK, block, groups).reshape(query_XQK.shape)
            mean_XQ1 = _rows(mean_BSH1, block, groups).reshape(*query_XQK.shape[:2], 1)
            _add_keys(grad_value_BGSK, block, torch.bmm(probability_XQn.mT, grad_XQK))
            score_XQn = torch.bmm(grad_XQK, value_XnK.mT)
            score_XQn.sub_(mean_XQ1).mul_(probability_XQn)
            part_BHqK = grad_query_BHSK[:, :, block.first : block.end]
            part_BHqK.copy_(torch.bmm(score_XQn, key_XnK).view(part_BHqK.shape))
            _add_keys(grad_key_BGSK, block, torch.bmm(score_XQn.mT, query_XQK))
        return grad_query_BHSK, grad_key_BGSK, grad_value_BGSK


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BHSK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor, blocks: list[Block]) -> Tensor:
        run = BandedPass(query_BHSK, key_BGSK, value_BGSK, blocks)
        output_BSHK = run.forward(any(ctx.needs_input_grad))
        tensors = [tensor for kept in run.kept for tensor in kept]
        ctx.save_for_backward(query_BHSK, key_BGSK, value_BGSK, output_BSHK, *tensors)
        ctx.blocks = blocks
        return output_BSHK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BHSK, key_BGSK, value_BGSK, output_BSHK, *tensors = ctx.saved_tensors
        run = BandedPass(query_BHSK, key_BGSK, value_BGSK, ctx.blocks)
        run.output_BSHK = output_BSHK
        run.kept = [(tensors[i], tensors[i + 1], tensors[i + 2], tensors[i + 3]) for i in range(0, len(tensors), 4)]
        return *run.backward(grad_outputs[0]), None


def _spans(sequence: int, window: int | None, sinks: int) -> list[tuple[int, int, int, int]]:
    """(first, end, low, sinks apart from the band) of each block; sinks that the band reaches are part of it."""
    spans = []
    for first in range(0, sequence, _BLOCK):
        low = 0 if window is None else max(0, first - window + 1)
        spans.append((first, min(first + _BLOCK, sequence), *((low, sinks) if low > sinks else (0, 0))))
    return spans


def _keys(tensor_XSK: Tensor, block: Block) -> Tensor:
    """The keys (or values) that a block sees, [X, n, K]."""
    band_XnK = tensor_XSK[:, block.low : block.end]
    return torch.cat([tensor_XSK[:, : block.sinks], band_XnK], dim=1) if block.sinks else band_XnK


def _add_keys(total_BGSK: Tensor, block: Block, part_XnK: Tensor) -> None:
    part_BGnK = part_XnK.view(*total_BGSK.shape[:2], *part_XnK.shape[1:])
    if block.sinks:
        total_BGSK[:, :, : block.sinks] += part_BGnK[:, :, : block.sinks]
    total_BGSK[:, :, block.low : block.end] += part_BGnK[:, :, block.sinks :]


def _rows(tensor_BSHK: Tensor, block: Block, groups: int) -> Tensor:
    """The rows of a block as [B, G, R, q, K], a view."""
    part_BqHK = tensor_BSHK[:, block.first : block.end]
    return part_BqHK.view(*part_BqHK.shape[:2], groups, -1, part_BqHK.shape[-1]).permute(0, 2, 3, 1, 4)
