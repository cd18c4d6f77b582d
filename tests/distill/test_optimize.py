"""The schedule and the optimizer's groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inlay.distill.optimize import adamw, set_learning_rate, warmup_cosine


def test_the_rate_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [warmup_cosine(step, 100, 0.1, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(0.6)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_short_runs_have_rates_between_floor_and_peak(steps: int, warmup: float) -> None:
    assert all(0.0 <= warmup_cosine(step, steps, warmup) <= 1.0 for step in range(steps))


def test_vectors_are_not_decayed_and_rates_reach_every_group() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = adamw([matrix, vector], 0.1, (0.9, 0.95), 0.5)
    set_learning_rate(optimizer, 0.2)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(matrix.detach(), torch.tensor(0.9))
    assert torch.equal(vector.detach(), torch.ones(2))
