"""The normalised error of updates, and the fused forms of it, against their plain definitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from inlay.kernels import (
    AttentionShape,
    attention_error,
    banded_attention,
    banded_elements,
    gated_ffn,
    gated_ffn_error,
    linear_error,
    rotate,
    update_mse,
    update_scale,
)

D = 12


def normal(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_(grad)


def assert_same(ours: Callable[[], Tensor], plain: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    """Same value and same gradients for all inputs."""
    weights = normal(*plain().shape, seed=9)
    torch.testing.assert_close(ours(), plain(), rtol=1e-9, atol=1e-12)
    mine = torch.autograd.grad((ours() * weights).sum(), inputs)
    theirs = torch.autograd.grad((plain() * weights).sum(), inputs)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def visible(sequence: int, window: int | None, sinks: int) -> Tensor:
    query, key = torch.arange(sequence)[:, None], torch.arange(sequence)[None, :]
    return (key <= query) & ((query - key < (window or sequence)) | (key < sinks))


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, sinks: int) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    mask = visible(query.shape[2], window, sinks)
    return functional.scaled_dot_product_attention(query, key, value, mask, scale=scale).transpose(1, 2)


def half_rotated(tensor_BHSK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = tensor_BHSK.chunk(2, dim=-1)
    return tensor_BHSK * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def test_no_update_is_exactly_one_and_the_parents_own_exactly_zero() -> None:
    for seed in range(5):
        parent = normal(3, 7, D, seed=seed).float()
        assert float(update_mse(torch.zeros_like(parent), parent)) == 1.0
        assert float(update_mse(parent.clone(), parent)) == 0.0


def test_update_mse_is_the_ratio_of_errors() -> None:
    update, parent = normal(3, 7, D, grad=True), normal(3, 7, D, seed=1)
    assert_same(
        lambda: update_mse(update, parent),
        lambda: functional.mse_loss(update, parent) / functional.mse_loss(parent, torch.zeros_like(parent)),
        [update],
    )
    assert torch.equal(update_mse(update, parent, update_scale(parent)), update_mse(update, parent))


def test_update_mse_of_bfloat16_sums_in_float32() -> None:
    update, parent = normal(64, 64, D).bfloat16(), normal(64, 64, D, seed=1).bfloat16()
    exact = update_mse(update.double(), parent.double())
    assert float(update_mse(update, parent)) == pytest.approx(float(exact), rel=1e-5)


def test_update_mse_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"`update` has shape \(2, 3\) but `parent_update` has \(2, 4\)"):
        update_mse(torch.zeros(2, 3), torch.zeros(2, 4))


def test_linear_error() -> None:
    given, weight, answer = normal(700, D), normal(D, D, seed=1, grad=True), normal(700, D, seed=2)
    assert_same(
        lambda: linear_error(given, weight, answer, update_scale(answer)),
        lambda: update_mse(given @ weight.T, answer),
        [weight],
    )


@pytest.mark.parametrize("width", [1, 16, 4096])
def test_gated_ffn_error_over_several_tiles(width: int) -> None:
    given, answer = normal(600, D), normal(600, D, seed=4)
    gate, up, down = (normal(*shape, seed=i, grad=True) for i, shape in enumerate([(width, D)] * 2 + [(D, width)], 1))
    assert_same(
        lambda: gated_ffn_error(given, gate, up, down, answer, update_scale(answer)),
        lambda: update_mse((functional.silu(given @ gate.T) * (given @ up.T)) @ down.T, answer),
        [gate, up, down],
    )


def test_gated_ffn_gives_the_gradient_of_its_input() -> None:
    given = normal(600, D, grad=True)
    gate, up, down = normal(4096, D, seed=1), normal(4096, D, seed=2), normal(D, 4096, seed=3)
    assert_same(
        lambda: gated_ffn(given, gate, up, down),
        lambda: (functional.silu(given @ gate.T) * (given @ up.T)) @ down.T,
        [given],
    )


@pytest.mark.parametrize(
    ("sequence", "window", "sinks", "groups"),
    [(1, None, 0, 2), (130, None, 0, 6), (64, None, 0, 1), (130, 1, 0, 2), (200, 20, 4, 3), (200, 64, 70, 2),
     (130, 500, 4, 1), (256, 100, 4, 6)],
)  # fmt: skip
def test_banded_attention(sequence: int, window: int | None, sinks: int, groups: int) -> None:
    query = normal(2, 6, sequence, 8, grad=True)
    key, value = (normal(2, groups, sequence, 8, seed=i, grad=True) for i in (1, 2))
    assert_same(
        lambda: banded_attention(query, key, value, 0.3, window, sinks),
        lambda: dense_attention(query, key, value, 0.3, window, sinks),
        [query, key, value],
    )


def test_a_window_computes_less_than_the_square() -> None:
    assert banded_elements(1024) < 0.6 * 1024**2
    assert banded_elements(1024, 64, 4) < 0.15 * 1024**2
    assert banded_elements(1024, 64, 4) >= int(visible(1024, 64, 4).sum())


def test_rotate() -> None:
    given = normal(2, 9, 3, 8, grad=True)
    cos, sin = normal(1, 9, 8, seed=1), normal(1, 9, 8, seed=2)
    assert_same(
        lambda: rotate(given, cos, sin),
        lambda: half_rotated(given.transpose(1, 2), cos, sin),
        [given],
    )


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_error_over_several_tiles(window: int | None, with_bias: bool) -> None:
    heads, groups, size, sequence = 4, 2, 6, 130
    given, answer = normal(20, sequence, D), normal(20, sequence, D, seed=1)
    joint = normal((heads + 2 * groups) * size, D, seed=2, grad=True)
    bias = normal(len(joint), seed=3, grad=True) if with_bias else None
    out = normal(D, heads * size, seed=4, grad=True)
    rotary = (normal(1, sequence, size, seed=5), normal(1, sequence, size, seed=6))
    shape = AttentionShape(size, 0.2, window, 4 if window else 0)

    def plain() -> Tensor:
        joined = functional.linear(given, joint, bias).unflatten(-1, (-1, size)).transpose(1, 2)
        query, key, value = joined.split([heads, groups, groups], dim=1)
        mixed = dense_attention(
            half_rotated(query, *rotary), half_rotated(key, *rotary), value, shape.scale, window, shape.sinks
        )
        return update_mse(mixed.flatten(2) @ out.T, answer)

    assert_same(
        lambda: attention_error(given, joint, bias, out, rotary, shape, answer, update_scale(answer)),
        plain,
        [joint, out] if bias is None else [joint, bias, out],
    )


def test_errors_without_gradients_are_the_same_numbers() -> None:
    given, answer = normal(600, D), normal(600, D, seed=4)
    weight = normal(D, D, seed=1, grad=True)
    with torch.no_grad():
        quiet = linear_error(given, weight, answer, update_scale(answer))
    assert not quiet.requires_grad
    assert torch.equal(quiet, linear_error(given, weight, answer, update_scale(answer)).detach())
