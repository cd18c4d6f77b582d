"""How texts are cut into shards: part of what fixes the pieces of a search, whatever the cluster."""

LARGEST_SHARD = 16_384
"""Tokens that a shard has at most: what a worker holds of a text at once."""
SMALLEST_SHARD = 2_048
"""Tokens below which the layers would be read more often than they are worth."""
SHARDS_WANTED = 4
"""A short text is cut into about so many shards, so that several workers share it."""


def shard_ranges(num_sequences: int, sequence_length: int) -> list[tuple[int, int]]:
    """Cuts a text of `num_sequences` into equal runs, but for the last: [(first, end), ...], end exclusive."""
    wanted = -(-num_sequences * sequence_length // SHARDS_WANTED)
    size = max(1, min(LARGEST_SHARD, max(SMALLEST_SHARD, wanted)) // sequence_length)
    return [(start, min(start + size, num_sequences)) for start in range(0, num_sequences, size)]
