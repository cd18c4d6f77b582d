"""The schedule and the optimizer's groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inlay.distill.optimize import adamw, precision, set_learning_rate, tensor_cores, training_dtype, warmup_linear


def test_the_rate_rises_to_the_peak_and_falls_by_equal_steps() -> None:
    rates = [warmup_linear(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[9] == 1.0
    assert rates[9:] == pytest.approx([1.0 - step / 91 for step in range(91)])


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_no_step_of_a_short_run_is_for_nothing(steps: int, warmup: float) -> None:
    rates = [warmup_linear(step, steps, warmup) for step in range(steps)]
    assert all(0.2 < rate <= 1.0 for rate in rates)
    assert max(rates) == 1.0


@pytest.mark.parametrize(
    ("parent", "trained"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16),
    ],
)
def test_parents_in_16_bits_are_distilled_in_bfloat16(parent: torch.dtype, trained: torch.dtype) -> None:
    master = torch.ones(2, 2, dtype=torch.float64 if parent == torch.float64 else torch.float32, requires_grad=True)
    with precision(torch.ones(1, dtype=parent)):
        product = master @ master
    product.sum().backward()  # type: ignore[no-untyped-call]
    assert product.dtype == training_dtype(parent) == trained
    assert master.grad is not None
    assert master.grad.dtype == master.dtype


def test_products_are_rounded_to_tf32_while_training_only() -> None:
    def of_now() -> str:
        return str(torch.backends.cuda.matmul.fp32_precision)

    before = of_now()
    with tensor_cores():
        assert of_now() == "tf32"
    assert of_now() == before != "tf32"


def test_vectors_are_not_decayed_and_rates_reach_every_group() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = adamw([matrix, vector], 0.1, (0.9, 0.95), 0.5)
    set_learning_rate(optimizer, 0.2)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(matrix.detach(), torch.tensor(0.9))
    assert torch.equal(vector.detach(), torch.ones(2))
