"""What every training loop here shares: the learning-rate schedule, AdamW, and the types that it computes in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def warmup_linear(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at `step` (0-based) of `steps`: a straight line up, then one down to 0.

    `warmup` is the share of steps spent rising, at least one step. 0 is reached one step behind the last: a step at a
    rate of 0 would be a batch for nothing. A cosine's end, with hardly any rate, leaves the child behind.
    """
    rising = max(1, math.ceil(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 1.0 - (step - rising + 1) / (steps - rising + 1)


def adamw(
    parameters: Iterable[nn.Parameter], learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW in its fused form; vectors (norms, biases) are never decayed."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=learning_rate, betas=betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def training_dtype(parent_dtype: torch.dtype) -> torch.dtype:
    """What a model is trained in whose parent computes in `parent_dtype`; its masters are float32.

    bfloat16 for float16 too: gradients of a mean over a batch are smaller than float16 can tell from 0.
    """
    return torch.bfloat16 if parent_dtype in (torch.bfloat16, torch.float16) else parent_dtype


def precision(parent_hidden: Tensor) -> AbstractContextManager[Any]:
    """The type that training computes in, by what the parent's hidden states are in."""
    dtype = training_dtype(parent_hidden.dtype)
    return torch.autocast(parent_hidden.device.type, dtype=dtype) if dtype == torch.bfloat16 else nullcontext()


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Lets GPUs round the factors of float32 products to TF32 while a model trains; what is scored is never rounded."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before
