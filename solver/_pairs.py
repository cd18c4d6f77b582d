"""Pair terms in the search: spread over single choices as an underestimate, corrected when both sides are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inlay.solver._graph import Graph
from inlay.solver._relax import Edges, PairColumns

BITS = 62
"""Bits of a word of memory that are used."""


@dataclass(frozen=True)
class Spread:
    """Pair terms as single scores: `first`, `second` [P] is what each side bears, `constant` what no choice bears.

    For a negative term -p <= first + second, with first + second = p exactly: each side is credited its part at once.
    For a positive term both sides are charged `first` and `constant` takes it off again.
    """

    pairs: PairColumns
    first: np.ndarray
    second: np.ndarray
    constant: int

    def score(self, edges: Edges) -> np.ndarray:
        """The edges' scores with their parts added: with `constant` an underestimate of every path."""
        score = edges.score.copy()
        np.add.at(score, self.pairs.first, self.first)
        np.add.at(score, self.pairs.second, self.second)
        return score


def spread(pairs: PairColumns, prices: np.ndarray) -> Spread:
    """Spread `pairs` by the relaxation's `prices` [P, 2], rounded to integers that keep it an underestimate."""
    size = np.abs(pairs.score)
    first = np.clip(np.rint(prices[:, 0]).astype(np.int64), 0, size) if len(size) else size
    negative = pairs.score < 0
    return Spread(
        pairs,
        np.where(negative, -first, first),
        np.where(negative, first - size, first),
        -int(first[~negative].sum()),
    )


class OpenPairs:
    """What states still owe: a bit of memory for each choice that a later choice asks about.

    Bits are used again once nothing asks about their choice any more; `num_words` int64 words hold them.
    """

    def __init__(self, graph: Graph, spread_: Spread, span: np.ndarray) -> None:
        """`spread_` speaks of graph edges' originals (`graph.edge`); `span` [E'] of the graph's edges."""
        place = {edge: k for k, edge in enumerate(graph.edge.tolist())}
        self._node = np.repeat(np.arange(graph.num_nodes), np.diff(graph.first))
        self._end = self._node + span
        asks: list[tuple[int, int, int, int]] = []
        asked: dict[int, tuple[int, int]] = {}
        pairs = spread_.pairs
        columns = (pairs.first, pairs.second, pairs.score, spread_.first, spread_.second)
        for a, b, score, part_a, part_b in zip(*(column.tolist() for column in columns), strict=True):
            first, second = place[a], place[b]
            if self._node[first] > self._node[second]:
                first, second, part_a, part_b = second, first, part_b, part_a
            at = int(self._node[second])
            crossing = np.flatnonzero((self._node <= at) & (at < self._end)).tolist()
            since, until = asked.get(first, (at, at))
            asked[first] = (min(since, *self._node[crossing].tolist()), max(until, at))
            for edge in crossing:
                if score < 0:
                    taken, not_taken = (0, -part_b) if edge == second else (-part_a, 0)
                else:
                    taken, not_taken = (score - part_a, 0) if edge == second else (0, part_a)
                asks.append((edge, first, taken, not_taken))
        self._bit = _assign_bits([(int(self._node[first]), *when, first) for first, when in asked.items()])
        self.num_words = 1 + max((word for word, _ in self._bit.values()), default=0)
        self._forget = np.zeros((self.num_words, graph.num_nodes), dtype=np.int64)
        for first, (_, until) in asked.items():
            word, bit = self._bit[first]
            self._forget[word, until] |= 1 << bit
        self._asks: dict[int, list[tuple[int, int, int, int]]] = {}
        for edge, first, taken, not_taken in asks:
            self._asks.setdefault(edge, []).append((*self._bit[first], taken, not_taken))

    @property
    def any(self) -> bool:
        """Whether there are pair terms at all."""
        return bool(self._bit)

    def cross(self, memory: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What states with this `memory` [w, n] pay beside the scores for taking `edge` [n], and their memory then."""
        extra = np.zeros(len(edge))
        memory = memory.copy()
        for one in np.unique(edge).tolist():
            mine = np.flatnonzero(edge == one)
            for word, bit, taken, not_taken in self._asks.get(one, ()):
                extra[mine] += np.where(memory[word, mine] >> bit & 1, taken, not_taken)
            passed = self._forget[:, self._node[one] : self._end[one]]
            memory[:, mine] &= ~np.bitwise_or.reduce(passed, axis=1)[:, None]
            if one in self._bit:
                word, bit = self._bit[one]
                memory[word, mine] |= 1 << bit
        return extra, memory


def _assign_bits(asked: list[tuple[int, int, int, int]]) -> dict[int, tuple[int, int]]:
    """A (word, bit) for each choice, given as (node, node of the first edge that asks, node of the last, choice).

    A bit is set at its choice's node and forgotten where an edge crosses the last node at which it is asked about.
    """
    bits: dict[int, tuple[int, int]] = {}
    held_until: list[int] = []
    for node, since, until, choice in sorted(asked):
        # An edge that starts at the node where the bit is forgotten still sees it: a wide one may ask for both choices.
        free = (slot for slot, held in enumerate(held_until) if held <= node and held < since)
        slot = next(free, len(held_until))
        held_until[slot : slot + 1] = [until]
        bits[choice] = divmod(slot, BITS)
    return bits
