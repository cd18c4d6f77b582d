"""Codes by least squares: what is left of one input channel's rounding error the channels after it make up for.

The error of a matrix is that of its outputs on text, tr(d G d') for the change d and the Gram matrix G of its inputs.
Column by column each number takes the nearest code, and the columns behind it are moved so that the sum over the text
changes least: optimal brain quantisation in a fixed order (GPTQ, arXiv 2210.17323). Scales are chosen by ggml, block by
block, for the numbers as they have become by then, weighed by the diagonal of G. Then, scales fixed, coordinate descent
(QuantEase, arXiv 2309.01885): a column may change its code once those behind it are known.

R rows, C input channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.nas.errors import UserError
from inlay.nas.formats.codes import Codes
from inlay.nas.formats.format import Format
from inlay.nas.formats.inputs import Inputs

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes

PASSES = 1
"""Of the coordinate descent over all columns: benchmarks/rounding.py says what they are worth."""
RUN = 32
"""Columns that are worked on one by one before what they leave reaches all others in one product."""


def fitted(weights_RC: Tensor, form: Format, inputs: Inputs) -> Bytes:
    """The packed rows of a matrix, [R, bytes of a row].

    Args:
        weights_RC: float32 on the CPU; rows of whole blocks.
        form: one that can be fitted (`Format.can_fit`).
        inputs: of C channels.

    Raises:
        UserError: weights or Gram matrix are not finite, as `Format.pack`.
    """
    if not inputs.gram_CC.isfinite().all():
        raise UserError(f"{form.name}: what a matrix reads is not finite; gather the statistics anew")
    own = form.fitted(weights_RC, inputs)
    return _fitted_codes(weights_RC, form, inputs) if own is None else own


def _fitted_codes(weights_RC: Tensor, form: Format, inputs: Inputs) -> Bytes:
    codes, factor_CC = form.codes(weights_RC.shape[1]), inputs.factor_CC
    assert codes is not None
    importance = inputs.importance_C.numpy()
    own_CR = weights_RC.T.contiguous()
    left_CR = own_CR.clone()
    scale_CR, offset_CR, chosen_CR = (torch.empty_like(left_CR) for _ in range(3))
    packed = []
    for start in range(0, len(left_CR), codes.block):
        end = start + codes.block
        packed.append(form.pack(left_CR[start:end].T.contiguous().numpy(), importance[start:end]))
        for part_CR, part in zip((scale_CR, offset_CR), codes.grid(packed[-1]), strict=True):
            part_CR[start:end] = torch.from_numpy(part).T
        error_BR = torch.empty(codes.block, left_CR.shape[1])
        for first in range(start, end, RUN):
            place = slice(first, first + RUN)
            errors = error_BR[first - start : first - start + RUN]
            _sweep(
                left_CR[place], codes, scale_CR[place], offset_CR[place], factor_CC[place, place],
                chosen_CR[place], errors,
            )  # fmt: skip
            left_CR[place.stop : end] -= factor_CC[place, place.stop : end].T @ errors
        left_CR[end:] -= factor_CC[start:end, end:].T @ error_BR
    _refine(own_CR, codes, scale_CR, offset_CR, inputs.damped_CC, chosen_CR)
    for number, bytes_RB in enumerate(packed):
        own = chosen_CR[number * codes.block : (number + 1) * codes.block]
        packed[number] = codes.with_codes(bytes_RB, codes.stored(own.T))
    return np.concatenate(packed, axis=1)


def _sweep(
    left_BR: Tensor,
    codes: Codes,
    scale_BR: Tensor,
    offset_BR: Tensor,
    factor_BB: Tensor,
    chosen_BR: Tensor,
    error_BR: Tensor,
) -> None:
    """Fills in the codes of some columns, and the errors that those behind make up for."""
    # Where a scale is nothing every code means the same number.
    inverse_BR = torch.where(scale_BR == 0, 0.0, 1 / scale_BR)
    for column, (left_R, scale_R, offset_R) in enumerate(zip(left_BR, scale_BR, offset_BR, strict=True)):
        code_R = codes.nearest((left_R - offset_R) * inverse_BR[column])
        torch.div(left_R - torch.addcmul(offset_R, code_R, scale_R), factor_BB[column, column], out=error_BR[column])
        left_BR[column + 1 :].addr_(factor_BB[column, column + 1 :], error_BR[column], alpha=-1)
        chosen_BR[column] = code_R


def _refine(
    own_CR: Tensor, codes: Codes, scale_CR: Tensor, offset_CR: Tensor, gram_CC: Tensor, chosen_CR: Tensor
) -> None:
    """Coordinate descent: each column in turn takes the codes that are best beside those of all others."""
    inverse_CR = torch.where(scale_CR == 0, 0.0, 1 / scale_CR)
    number_CR = torch.addcmul(offset_CR, chosen_CR, scale_CR)
    # Half the gradient of the outputs' square error.
    pull_CR = gram_CC @ (number_CR - own_CR)
    for _ in range(PASSES):
        for start in range(0, len(own_CR), RUN):
            run = slice(start, start + RUN)
            before_BR, pull_BR, gram_BB = number_CR[run].clone(), pull_CR[run], gram_CC[run, run]
            for column in range(len(before_BR)):
                here = start + column
                wanted_R = number_CR[here] - pull_BR[column] / gram_BB[column, column]
                code_R = codes.nearest((wanted_R - offset_CR[here]) * inverse_CR[here])
                number_R = torch.addcmul(offset_CR[here], code_R, scale_CR[here])
                pull_BR.addr_(gram_BB[:, column], number_R - number_CR[here])
                number_CR[here] = number_R
                chosen_CR[here] = code_R
            change_BR = number_CR[run] - before_BR
            pull_CR[:start] += gram_CC[:start, run] @ change_BR
            pull_CR[run.stop :] += gram_CC[run.stop :, run] @ change_BR
