"""Tensor functions worth a kernel: a torch reference and one dispatcher each."""

from __future__ import annotations

from inlay.kernels.attention_error import AttentionShape, attention_error
from inlay.kernels.banded_attention import banded_attention, banded_elements
from inlay.kernels.divergence import NextTokenComparison, compare_next_token, kl_loss
from inlay.kernels.gated_ffn import gated_ffn, gated_ffn_error
from inlay.kernels.rotary import rotate
from inlay.kernels.update_error import linear_error, update_mse, update_scale

__all__ = [
    "AttentionShape",
    "NextTokenComparison",
    "attention_error",
    "banded_attention",
    "banded_elements",
    "compare_next_token",
    "gated_ffn",
    "gated_ffn_error",
    "kl_loss",
    "linear_error",
    "rotate",
    "update_mse",
    "update_scale",
]
