"""How texts are cut into shards: part of what fixes the pieces of a search, whatever the cluster."""

from itertools import pairwise

LARGEST_SHARD = 16_384
"""Tokens that a shard has at most: what a worker holds of a text at once."""
SMALLEST_SHARD = 512
"""Tokens below which the layers would be read more often than they are worth."""
SHARDS_WANTED = 4
"""A short text is cut into so many shards at most, a power of two, so that two or four workers end together."""


def shard_ranges(num_sequences: int, sequence_length: int) -> list[tuple[int, int]]:
    """Cuts a text of `num_sequences` into runs that differ by one at most: [(first, end), ...], end exclusive."""
    largest, smallest = (max(1, tokens // sequence_length) for tokens in (LARGEST_SHARD, SMALLEST_SHARD))
    count = max(1, -(-num_sequences // largest), min(SHARDS_WANTED, _power_of_two(num_sequences // smallest)))
    cuts = [num_sequences * number // count for number in range(count + 1)]
    return list(pairwise(cuts))


def _power_of_two(number: int) -> int:
    """The largest that is not above it; 0 for 0."""
    return 1 << number.bit_length() - 1 if number else 0
