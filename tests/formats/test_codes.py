"""The inside of blocks, against ggml's own unpacking."""

from __future__ import annotations

import numpy as np
import pytest

from inlay.nas.formats.codes import CODES
from inlay.nas.formats.gguf import GGUF


@pytest.fixture
def blocks(name: str) -> np.ndarray:
    """Packed blocks of numbers of several sizes, [64, block_bytes]."""
    random = np.random.default_rng(0)
    numbers = random.normal(0, 1, (64, CODES[name].block)) * np.exp(random.normal(0, 2, (64, 1)))
    return GGUF[name].pack(numbers.astype(np.float32))


@pytest.mark.parametrize("name", CODES)
def test_every_code_is_its_scale_times_and_its_offset(name: str, blocks: np.ndarray) -> None:
    codes = CODES[name]
    chosen = np.random.default_rng(1).integers(0, codes.most - codes.least + 1, (64, codes.block)).astype(np.uint8)
    scale, offset = codes.grid(blocks)
    expected = scale * (chosen.astype(np.float32) + codes.least) + offset
    found = GGUF[name].unpack(codes.with_codes(blocks, chosen), codes.block)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(scale).max())


@pytest.mark.parametrize("name", CODES)
def test_what_ggml_chose_is_on_the_grid_and_packed_again_it_is_the_same(name: str, blocks: np.ndarray) -> None:
    codes = CODES[name]
    scale, offset = codes.grid(blocks)
    numbers = GGUF[name].unpack(blocks, codes.block)
    safe = np.where(scale == 0, 1, scale)
    own = np.where(scale == 0, -codes.least, np.round((numbers - offset) / safe) - codes.least)
    assert own.min() >= 0
    assert own.max() <= codes.most - codes.least
    again = codes.with_codes(blocks, own.astype(np.uint8))
    assert (GGUF[name].unpack(again, codes.block) == numbers).all()


@pytest.mark.parametrize("name", CODES)
def test_sizes_are_those_of_the_format(name: str) -> None:
    assert (CODES[name].block, CODES[name].block_bytes) == (GGUF[name].block, GGUF[name].block_bytes)
