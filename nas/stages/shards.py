"""How texts are cut into shards: part of what fixes the pieces of a search, whatever the cluster."""

SHARD_TOKENS = 16_384
"""Tokens of a shard: the unit of boundaries and of text that a worker reads."""


def shard_ranges(num_sequences: int, sequence_length: int, shard_tokens: int) -> list[tuple[int, int]]:
    """Cuts a text of `num_sequences` into runs of about `shard_tokens` tokens: [(first, end), ...], end exclusive."""
    size = max(1, shard_tokens // sequence_length)
    return [(start, min(start + size, num_sequences)) for start in range(0, num_sequences, size)]
