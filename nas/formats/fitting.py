"""Codes by least squares: what is left of one input channel's rounding error the channels after it make up for.

The error of a matrix is that of its outputs on text, tr(d G d') for the change d and the Gram matrix G of its inputs.
Column by column each number takes the nearest code, and the columns behind it are moved so that the sum over the text
changes least: optimal brain quantisation in a fixed order (GPTQ, arXiv 2210.17323). Scales are chosen by ggml, block by
block, for the numbers as they have become by then, weighed by the diagonal of G.

R rows, C input channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.nas.formats.codes import CODES, Codes
from inlay.nas.formats.format import Format

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes

DAMPING = 0.01
"""Of the mean of G's diagonal, added to all of it: a text of few tokens says nothing of some directions."""


def can_fit(form: Format) -> bool:
    """Whether codes may be chosen: not where every number has an exponent of its own."""
    return form.name in CODES


def fitted(weights_RC: Tensor, form: Format, gram_CC: Tensor) -> Bytes:
    """The packed rows of a matrix, [R, bytes of a row].

    Args:
        weights_RC: float32 on the CPU; rows of whole blocks.
        form: one that `can_fit`.
        gram_CC: X'X of the inputs, or their mean over tokens.

    Raises:
        UserError: weights or Gram matrix are not finite, as `Format.pack`.
    """
    codes = CODES[form.name]
    gram_CC, factor_CC = _factor(gram_CC)
    importance = gram_CC.diagonal().numpy()
    left_RC = weights_RC.clone()
    packed = []
    for start in range(0, left_RC.shape[1], codes.block):
        end = start + codes.block
        own_RB = left_RC[:, start:end]
        bytes_RB = form.pack(own_RB.numpy(), importance[start:end])
        chosen_RB, error_RB = _swept(own_RB, codes, bytes_RB, factor_CC[start:end, start:end])
        packed.append(codes.with_codes(bytes_RB, chosen_RB))
        left_RC[:, end:] -= error_RB @ factor_CC[start:end, end:]
    return np.concatenate(packed, axis=1)


def _factor(gram_CC: Tensor) -> tuple[Tensor, Tensor]:
    """The damped Gram matrix, and the upper factor U of its inverse, U'U; both float32."""
    damped = gram_CC.double()
    mean = damped.diagonal().mean()
    damped = damped + (DAMPING * mean if mean > 0 else 1.0) * torch.eye(len(damped), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return damped.float(), torch.linalg.cholesky(inverse, upper=True).float()


def _swept(own_RB: Tensor, codes: Codes, packed: Bytes, factor_BB: Tensor) -> tuple[Bytes, Tensor]:
    """Codes of a block's columns, less the least one, and what each column leaves to those behind it; `own_RB` moves."""
    scale_RB, offset_RB = map(torch.from_numpy, codes.grid(packed))
    # Where a scale is nothing every code means the same number.
    inverse_RB = torch.where(scale_RB == 0, 0.0, 1 / scale_RB)
    chosen_RB = torch.empty(own_RB.shape)
    error_RB = torch.empty_like(own_RB)
    for column in range(own_RB.shape[1]):
        own_R, scale_R, offset_R = own_RB[:, column], scale_RB[:, column], offset_RB[:, column]
        code_R = ((own_R - offset_R) * inverse_RB[:, column]).round_().clamp_(codes.least, codes.most)
        error_R = (own_R - code_R * scale_R - offset_R) / factor_BB[column, column]
        own_RB[:, column + 1 :] -= error_R[:, None] * factor_BB[column, column + 1 :]
        chosen_RB[:, column], error_RB[:, column] = code_R - codes.least, error_R
    return chosen_RB.to(torch.uint8).numpy(), error_RB
