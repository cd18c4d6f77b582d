"""Grids that training goes through: where it begins, what is computed with, and what is stored."""

from __future__ import annotations

import pytest
import torch

from inlay.nas.formats import FORMATS
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.tensors import packed
from inlay.nas.formats.through import through

FITTED = [name for name in FORMATS if FORMATS[name].can_fit]


@pytest.fixture
def weights_RC() -> torch.Tensor:
    weights = torch.randn(24, 512, generator=torch.Generator().manual_seed(1)) * 0.05
    weights[3] = 0.0
    return weights


@pytest.fixture
def inputs() -> Inputs:
    read_ND = torch.randn(1024, 512, generator=torch.Generator().manual_seed(2)).cumsum(1)
    return Inputs("read", read_ND.T @ read_ND / len(read_ND))


def numbers(rows: object, name: str) -> torch.Tensor:
    return torch.from_numpy(FORMATS[name].unpack(rows, 512).copy())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FITTED)
def test_training_begins_with_the_fitted_codes_and_near_the_weights(
    name: str, weights_RC: torch.Tensor, inputs: Inputs
) -> None:
    fitted = packed(weights_RC, FORMATS[name], inputs)
    grid = through(weights_RC, FORMATS[name], inputs, None)
    start = grid.start(weights_RC)
    assert (grid.pack(start) == fitted).all()
    assert (grid.pack(weights_RC) != fitted).any()
    torch.testing.assert_close(grid(start), numbers(fitted, name), rtol=1e-6, atol=1e-7)
    stayed = start == weights_RC
    assert 0.3 < float(stayed.float().mean()) < 1.0
    assert float((start - weights_RC).abs().sum()) < 0.5 * float((numbers(fitted, name) - weights_RC).abs().sum())


@pytest.mark.parametrize("name", FITTED)
def test_what_is_computed_with_is_what_is_stored(name: str, weights_RC: torch.Tensor) -> None:
    grid = through(weights_RC, FORMATS[name], None, None)
    moved = weights_RC + 0.03 * torch.randn(weights_RC.shape, generator=torch.Generator().manual_seed(3))
    rows = grid.pack(moved)
    assert (rows != grid.pack(weights_RC)).any()
    torch.testing.assert_close(grid(moved), numbers(rows, name), rtol=1e-6, atol=1e-7)
    # No code on the grid is nearer, but for weights beyond its ends.
    assert float((grid(moved) - moved).abs().median()) < float((grid(weights_RC) - moved).abs().median())
    assert (grid.pack(100 * moved) != rows).any()


@pytest.mark.parametrize("name", FITTED)
def test_a_rank_may_have_no_row_of_a_matrix(name: str, weights_RC: torch.Tensor, inputs: Inputs) -> None:
    grid = through(weights_RC[:0], FORMATS[name], inputs, None)
    row_bytes = packed(weights_RC, FORMATS[name]).shape[1]
    assert grid.start(weights_RC[:0]).shape == grid(weights_RC[:0]).shape == (0, 512)
    assert grid.pack(weights_RC[:0]).shape == (0, row_bytes)
