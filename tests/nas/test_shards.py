"""How texts are cut: every sequence once, evenly, and into as many parts as workers can share."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.nas.pieces.shards import LARGEST_SHARD, SHARDS_WANTED, SMALLEST_SHARD, shard_ranges


@given(st.integers(1, 5000), st.integers(1, 40_000))
def test_every_sequence_is_in_one_shard_and_shards_are_even(num_sequences: int, length: int) -> None:
    ranges = shard_ranges(num_sequences, length)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_sequences
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    sizes = {end - first for first, end in ranges}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * length <= max(LARGEST_SHARD, length)


@pytest.mark.parametrize(
    ("num_sequences", "length", "count"),
    [
        (3, 256, 1),
        (4, 256, 2),
        (7, 256, 2),
        (8, 256, SHARDS_WANTED),
        (23, 256, SHARDS_WANTED),
        (256, 256, SHARDS_WANTED),
        (257, 256, 5),
        (4, 16_384, 4),
    ],
)
def test_short_texts_are_shared_but_not_cut_to_crumbs(num_sequences: int, length: int, count: int) -> None:
    assert len(shard_ranges(num_sequences, length)) == count
    assert SMALLEST_SHARD * SHARDS_WANTED < LARGEST_SHARD
