"""What every training loop here shares: the learning-rate schedule, AdamW, and the type that it computes in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def warmup_cosine(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The share of the peak learning rate at `step` (0-based) of `steps`: linear up, then half a cosine down.

    `warmup` is the share of steps spent rising, `floor` the share of the peak reached at the last step.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising + 1) / max(steps - rising, 1)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


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


def precision(parent_hidden: Tensor) -> AbstractContextManager[Any]:
    """What to compute in: masters are float32; where the parent computes in bfloat16, so does what is trained."""
    if parent_hidden.dtype == torch.bfloat16:
        return torch.autocast(parent_hidden.device.type, dtype=torch.bfloat16)
    return nullcontext()
