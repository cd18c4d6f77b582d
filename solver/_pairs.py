"""Pair terms in the search: spread over single choices as an underestimate, corrected when both sides are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inlay.solver._graph import Graph
from inlay.solver._relax import Edges, PairColumns

MAX_OPEN = 62
"""So many choices can be asked about later, one bit each."""


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
    """Which states still owe what: a bit of `memory` for each choice that a later choice asks about."""

    def __init__(self, graph: Graph, spread_: Spread, span: np.ndarray) -> None:
        """`spread_` speaks of graph edges' originals (`graph.edge`); `span` [E'] of the graph's edges.

        Raises ValueError when more than MAX_OPEN choices are asked about.
        """
        place = {edge: k for k, edge in enumerate(graph.edge.tolist())}
        node = np.repeat(np.arange(graph.num_nodes), np.diff(graph.first))
        slots: dict[int, int] = {}
        self._asks: dict[int, list[tuple[int, int, int]]] = {}
        self._sets: dict[int, int] = {}
        pairs = spread_.pairs
        for a, b, score, part_a, part_b in zip(
            pairs.first.tolist(),
            pairs.second.tolist(),
            pairs.score.tolist(),
            spread_.first.tolist(),
            spread_.second.tolist(),
            strict=True,
        ):
            first, second = place[a], place[b]
            if node[first] > node[second]:
                first, second, part_a, part_b = second, first, part_b, part_a
            slot = slots.setdefault(first, len(slots))
            if slot >= MAX_OPEN:
                raise ValueError(f"more than {MAX_OPEN} choices are asked about by pair terms")
            self._sets[first] = slot
            at = node[second]
            for edge in np.flatnonzero((node <= at) & (at < node + span)).tolist():
                if score < 0:
                    taken, not_taken = (0, -part_b) if edge == second else (-part_a, 0)
                else:
                    taken, not_taken = (score - part_a, 0) if edge == second else (0, part_a)
                self._asks.setdefault(edge, []).append((slot, taken, not_taken))
        last_asked: dict[int, int] = {}
        for edge, asks in self._asks.items():
            for slot, _, _ in asks:
                last_asked[slot] = max(last_asked.get(slot, -1), int(node[edge]))
        self._forget = [0] * graph.num_nodes
        for slot, last in last_asked.items():
            self._forget[last] |= 1 << slot
        self._node = node

    @property
    def any(self) -> bool:
        """Whether there are pair terms at all."""
        return bool(self._sets)

    def cross(self, memory: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What states with this `memory` [n] pay beside the scores for taking `edge` [n], and their memory after it."""
        extra = np.zeros(len(memory))
        memory = memory.copy()
        for one in np.unique(edge).tolist():
            mine = np.flatnonzero(edge == one)
            for slot, taken, not_taken in self._asks.get(one, ()):
                extra[mine] += np.where(memory[mine] >> slot & 1, taken, not_taken)
            if one in self._sets:
                memory[mine] |= 1 << self._sets[one]
            memory[mine] &= ~self._forget[self._node[one]]
        return extra, memory
