"""What every number format promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inlay.nas.errors import UserError
from inlay.nas.formats import FORMATS, Format
from inlay.nas.formats.sparse import SPARSE
from inlay.nas.formats.tensors import rounded


@pytest.fixture(params=list(FORMATS))
def form(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


def numbers(rows: int, row: int) -> np.typing.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.05, (rows, row)).astype(np.float32)


def test_it_packs_into_the_bytes_that_it_says(form: Format) -> None:
    for rows, row in ((1, form.block), (7, 3 * form.block), (3, 512)):
        packed = form.pack(numbers(rows, row))
        assert packed.dtype == np.uint8
        assert packed.shape == (rows, form.num_bytes((row,)))
        assert packed.size == form.num_bytes((rows, row))
        assert form.unpack(packed, row).shape == (rows, row)


def test_rounding_is_packing_and_unpacking_and_stays_near(form: Format) -> None:
    own = numbers(8, 512)
    found = form.rounded(own)
    assert found.dtype == np.float32
    assert (found == form.unpack(form.pack(own), 512)).all()
    error = float(np.linalg.norm(found - own) / np.linalg.norm(own))
    if form.name in SPARSE:
        # Of four normal numbers the smaller two.
        assert error < 0.4
        return
    bits = 8 * form.block_bytes / form.block
    # fp8 spends four of its bits on exponents.
    assert error < 2.0 ** -min(bits - 3, 8)


def test_rows_that_are_not_whole_blocks_are_told(form: Format) -> None:
    assert form.fits(form.block)
    if form.block > 1:
        assert not form.fits(form.block + 1)
        with pytest.raises(
            ValueError, match=f"{form.name} stores {form.block} numbers together, and a row has {form.block + 1}"
        ):
            form.pack(numbers(2, form.block + 1))


def test_what_counts_more_is_nearer(form: Format) -> None:
    own = numbers(64, 512)
    counts = np.where(np.arange(512) % 4, 1e-3, 1.0).astype(np.float32)

    def damage(found: np.typing.NDArray[np.float32]) -> float:
        return float((((found - own) ** 2) * counts).sum())

    assert damage(form.rounded(own, counts)) <= damage(form.rounded(own))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(form: Format, bad: float) -> None:
    own = numbers(2, 256)
    own[1, 5] = bad
    with pytest.raises(UserError, match=f"{form.name} cannot store weights that are not finite"):
        form.pack(own)
    counts = np.ones(256, np.float32)
    counts[3] = -abs(bad)
    with pytest.raises(UserError, match=f"{form.name}: an importance is not finite or below zero"):
        form.pack(numbers(2, 256), counts)
    with pytest.raises(ValueError, match=r"importance has the shape \(255,\), and the rows have 256 numbers"):
        form.pack(numbers(2, 256), np.ones(255, np.float32))


def test_a_tensor_of_16_bits_is_rounded_as_its_numbers_are(form: Format) -> None:
    half = torch.from_numpy(numbers(4, 256)).bfloat16()
    assert (rounded(half, form) == torch.from_numpy(form.rounded(half.float().numpy()))).all()
