"""A linear layer whose weights stay packed: two of every four numbers of a row, and a bit for each that says which.

In memory it is as in the file, and it is unpacked where it multiplies. Rows of C numbers are C/2 bfloat16 values, then
C bits in whole bytes, the first number's lowest.

This file is copied beside exported weights, so it imports only torch and its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .subblock_inlay import TWO_OF_FOUR

FIRST_TWO = 0x33
"""Bits that keep the first two of each four, until a checkpoint says otherwise."""


class SparseLinear(nn.Module):
    """`nn.Linear` of packed rows.

    Args:
        in_features: C, a multiple of 4.
        out_features: rows.
        bias: whether it has one.
    """

    packed: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        rows = torch.full((out_features, in_features + -(-in_features // 8)), FIRST_TWO, dtype=torch.uint8)
        rows[:, :in_features] = 0
        # No parameter: a float would be cast to the type that a model is loaded in.
        self.register_buffer("packed", rows)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Of inputs [..., C]."""
        return functional.linear(inputs, self.numbers(inputs.dtype), self.bias)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """The matrix [rows, C]."""
        end = self.in_features
        values = self.packed[:, :end].contiguous().view(torch.bfloat16).to(dtype)
        places = torch.arange(8, dtype=torch.uint8, device=self.packed.device)
        is_kept = ((self.packed[:, end:, None] >> places) & 1).bool().flatten(1)[:, :end]
        return torch.zeros(is_kept.shape, dtype=dtype, device=values.device).masked_scatter_(is_kept, values)


def keep_packed(module: nn.Module, form: str) -> None:
    """Gives a module linear layers that stay packed in place of all that it has, where that is the format."""
    if form != TWO_OF_FOUR:
        raise ValueError(f"format is {form!r}; matrices stay packed in {TWO_OF_FOUR}")
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, SparseLinear(child.in_features, child.out_features, child.bias is not None))
        else:
            keep_packed(child, form)
