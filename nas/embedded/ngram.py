"""A modified Kneser-Ney n-gram model of token ids: the yardstick of the embedded parent.

Interpolated, with three discounts an order (Chen and Goodman 1998, section 5.6; all orders down to the uniform one).
N-grams are packed into one int64 each, kept sorted, and looked up by bisection, so that nothing loops over tokens.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's, for texts too small to estimate them


@dataclass(frozen=True)
class KneserNey:
    """The fitted model: one table an order, the unigrams first."""

    vocabulary: int
    order: int
    _tables: tuple["_Table", ...]

    @classmethod
    def fit(cls, tokens: NDArray[Any], vocabulary: int, order: int = 5) -> Self:
        """Counts the n-grams of one stream of ids, shape (N,), each in [0, vocabulary).

        Raises `ValueError` when the stream is shorter than `order`, an id is out of range, or an n-gram would not fit
        into 63 bits.
        """
        bits = _bits(vocabulary)
        stream = np.asarray(tokens, dtype=np.int64)
        if order < 1 or bits * order > 63:
            raise ValueError(f"`order` must be 1 to {63 // bits} for a vocabulary of {vocabulary}, not {order}.")
        if len(stream) < order:
            raise ValueError(f"`tokens` must hold at least `order` ({order}) ids, not {len(stream)}.")
        if stream.min() < 0 or stream.max() >= vocabulary:
            raise ValueError(f"`tokens` must lie in [0, {vocabulary}), not {stream.min()} to {stream.max()}.")
        keys, counts = np.unique(_pack(_windows(stream, order), bits), return_counts=True)
        tables = [_Table.of(keys, counts, bits)]
        for length in range(order - 1, 0, -1):
            # Below the highest order, a count is the number of different tokens seen before the n-gram.
            keys, counts = np.unique(keys & ((1 << bits * length) - 1), return_counts=True)
            tables.append(_Table.of(keys, counts, bits))
        return cls(vocabulary, order, tuple(reversed(tables)))

    def probabilities(self, contexts_NC: NDArray[Any], tokens_N: NDArray[Any]) -> Floats:
        """p(token | context), shape (N,); a context is the `order - 1` ids before, the oldest first."""
        bits = _bits(self.vocabulary)
        grams_NO = np.column_stack((contexts_NC, tokens_N)).astype(np.int64)
        result = np.full(len(grams_NO), 1.0 / self.vocabulary)
        for length, table in enumerate(self._tables, start=1):
            result = table.interpolate(_pack(grams_NO[:, self.order - length :], bits), result, bits)
        return result

    def bits(self, tokens: NDArray[Any], before: int) -> float:
        """Bits to code a stream of ids, shape (N,), when all contexts reach back over the id `before` at its start."""
        stream = np.asarray(tokens, dtype=np.int64)
        padded = np.concatenate((np.full(self.order - 1, before, dtype=np.int64), stream))
        grams_NO = _windows(padded, self.order)
        return float(-np.log2(self.probabilities(grams_NO[:, :-1], grams_NO[:, -1])).sum())


@dataclass(frozen=True)
class _Table:
    """The n-grams of one length: what each adds, and what its context leaves to the shorter n-grams."""

    keys: Ids
    shares: Floats
    context_keys: Ids
    left: Floats

    @classmethod
    def of(cls, keys: Ids, counts: Ids, bits: int) -> Self:
        discounts = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
        context_keys, starts = np.unique(keys >> bits, return_index=True)
        totals = np.add.reduceat(counts, starts)
        repeats = np.diff(np.append(starts, len(keys)))
        shares = (counts - discounts) / np.repeat(totals, repeats)
        return cls(keys, shares, context_keys, np.add.reduceat(discounts, starts) / totals)

    def interpolate(self, grams: Ids, shorter: Floats, bits: int) -> Floats:
        share, _ = _look_up(self.keys, self.shares, grams)
        left, seen = _look_up(self.context_keys, self.left, grams >> bits)
        return np.where(seen, share + left * shorter, shorter)


def _discounts(counts: Ids) -> tuple[float, float, float]:
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    if all(0 < discount < limit for discount, limit in zip(found, (1, 2, 3), strict=True)):
        return found
    return _FALLBACK_DISCOUNTS


def _look_up(keys: Ids, values: Floats, wanted: Ids) -> tuple[Floats, NDArray[np.bool_]]:
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[places] == wanted
    return np.where(found, values[places], 0.0), found


def _windows(stream: Ids, length: int) -> Ids:
    return np.lib.stride_tricks.sliding_window_view(stream, length)


def _pack(grams_NO: Ids, bits: int) -> Ids:
    packed = np.zeros(len(grams_NO), dtype=np.int64)
    for column in range(grams_NO.shape[1]):
        packed = (packed << bits) | grams_NO[:, column]
    return packed


def _bits(vocabulary: int) -> int:
    return max(1, (vocabulary - 1).bit_length())
