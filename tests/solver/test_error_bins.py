"""One limit, another way: a dynamic program over the error, as L-GreCo (arXiv 2210.17357) allots compression.

It asks for the least bytes at every total error; the program asks for the least error at so many bytes. Errors are
whole numbers, so that a bin holds one of them and both have the same optimum to the integer.
"""

from __future__ import annotations

import numpy as np
import pytest

from inlay.solver import Choice, Limit, Problem, solve

LAYERS = 24
FORMATS = (16.0, 8.5, 6.5625, 4.5, 3.4375)
"""Bits of a number."""


def formats_of_layers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors and bytes [L, V] of each layer's formats: fourfold with every bit less, some layers harmed much more."""
    rng = np.random.default_rng(seed)
    numbers_L = rng.integers(1, 5, LAYERS) * 4096
    harm_L = np.exp(rng.normal(0, 1, LAYERS))
    bits_V = np.array(FORMATS)
    noise_LV = np.exp(rng.normal(0, 0.2, (LAYERS, len(FORMATS))))
    error_LV = np.round(40 * harm_L[:, None] * 2.0 ** (4.5 - bits_V) * noise_LV).astype(int)
    error_LV[:, 0] = 0
    return error_LV, (numbers_L[:, None] * bits_V / 8).astype(int)


def least_bytes(error_LV: np.ndarray, bytes_LV: np.ndarray) -> np.ndarray:
    """The least bytes whose total error is e, for every e up to the largest there is."""
    bins = int(error_LV.max(axis=1).sum()) + 1
    least_E = np.full(bins, np.inf)
    least_E[0] = 0
    for error_V, bytes_V in zip(error_LV, bytes_LV, strict=True):
        moved = [
            np.concatenate([np.full(error, np.inf), least_E[: bins - error]]) + size
            for error, size in zip(error_V, bytes_V, strict=True)
        ]
        least_E = np.min(moved, axis=0)
    return least_E


@pytest.mark.parametrize("seed", range(4))
def test_the_least_error_within_so_many_bytes_is_the_same(seed: int) -> None:
    error_LV, bytes_LV = formats_of_layers(seed)
    least_E = least_bytes(error_LV, bytes_LV)
    layers = tuple(
        tuple(Choice(f"@{bits}", int(error), (int(size),)) for bits, error, size in zip(FORMATS, *own, strict=True))
        for own in zip(error_LV, bytes_LV, strict=True)
    )
    whole = int(bytes_LV[:, 0].sum())
    for share in (0.9, 0.5, 0.4, 0.3, 0.25):
        limit = int(share * whole)
        (found,) = solve(Problem(("weights",), layers, limits=(Limit("weights", upper=limit),)))
        expected = int(np.flatnonzero(least_E <= limit)[0])
        assert (found.status, found.objective) == ("optimal", expected)
        assert found.totals["weights"] <= limit
