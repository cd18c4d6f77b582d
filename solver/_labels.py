"""Exact search of the core: all states of a node at once, cut off by bounds, dominance and the limits.

A state is a path from the first node to here: its score, its rows so far, its tie weight. States advance node by node
in one numpy operation. Each is bounded by planes (Lagrangian bounds of the rest of the path at prices that the
relaxation gave for other states), so a state is dropped when no completion can be as good as the best known. Where too
many live, the best go on and the others wait on a stack: a depth-first search whose nodes are thousands of states.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from inlay.solver._dominance import undominated
from inlay.solver._graph import Graph
from inlay.solver._pairs import OpenPairs
from inlay.solver._planes import Planes
from inlay.solver._relax import Relaxation

CANDIDATES = 1 << 20
"""So many successors are made at a time."""

MOST_PIVOTS = 30
"""States of one node whose own relaxation is solved to learn a plane, at most."""

WORTH, PATIENCE = 100, 1
"""At a node planes are learnt until so many in a row have each cut off fewer states than they are worth."""

DIVE_WORTH, DIVE_PATIENCE = 40, 2
"""The same in a dive, which chooses by the bounds what it keeps: better ones are worth more there."""

LONGEST_PAUSE = 15
"""Visits of a node that learn nothing after a plane in vain, at most: one more than twice as many each time."""

LOOKED_AT = 20_000
"""States among which dominated ones are looked for before it is judged whether that is worth it."""

WORTH_LOOKING = 0.005
"""Share of dominated states below which no more are looked for."""

WORTH_LEARNING = 100
"""States below which no plane is learnt."""


@dataclass
class Trail:
    """Where the states of one node came from: state i by `edge[i]` from state `index[i]` of `parents[which[i]]`."""

    parents: tuple[Trail, ...]
    which: np.ndarray
    index: np.ndarray
    edge: np.ndarray


@dataclass
class States:
    """States at one node: `values` [m + 2, n], `bound` [n], `memory` [w, n] of pair terms, and how they came here."""

    values: np.ndarray
    bound: np.ndarray
    memory: np.ndarray
    trail: Trail

    def take(self, which: np.ndarray) -> States:
        trail = self.trail
        return States(
            self.values[:, which],
            self.bound[which],
            self.memory[:, which],
            Trail(trail.parents, trail.which[which], trail.index[which], trail.edge[which]),
        )

    def __len__(self) -> int:
        return len(self.bound)


@dataclass
class Found:
    """What a search found: the best `path` (edges of the graph) with its `values`, or None; `bound` holds for all else.

    Without a path nothing is at most `target`; `bound` is inf when the search was complete; `stopped` by the deadline.
    """

    path: np.ndarray | None = None
    values: np.ndarray | None = None
    bound: float = np.inf
    stopped: bool = False
    states: int = 0


@dataclass
class Search:
    """A search of `graph` for the best path of score at most `target`, ties included."""

    graph: Graph
    most: np.ndarray
    planes: Planes
    relaxation: Relaxation
    num_layers: int
    pairs: OpenPairs
    least_rows: np.ndarray = field(init=False)
    looked_at: int = field(init=False, default=0)
    dominated: int = field(init=False, default=0)
    wait: list[int] = field(init=False)
    pause: list[int] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.graph.values[1:-1]
        self.least_rows = self.graph.rest(rows)
        self.reduced = self.planes.first.reduced(self.graph)
        self.wait = [0] * (self.graph.num_nodes + 1)
        self.pause = [0] * (self.graph.num_nodes + 1)

    def run(
        self,
        target: float,
        width: int,
        *,
        forget: bool,
        deadline: float,
        best: np.ndarray | None = None,
        budget: float = np.inf,
    ) -> Found:
        """Search with at most `width` states of a node at a time; the others wait or, with `forget`, are dropped.

        `best` are the values of an answer already at hand: only better ones are returned.
        """
        found = Found()
        start = Trail((), *(np.zeros(1, dtype=np.int32) for _ in range(3)))
        values = self.graph.base[:, None].copy()
        memory = np.zeros((self.pairs.num_words, 1), dtype=np.int64)
        root = States(values, self.planes.bound(values, 0), memory, start)
        stack: list[dict[int, list[States]]] = [{0: [root]}]
        while stack:
            frontier = stack.pop()
            while frontier:
                node = min(frontier)
                states = _join(frontier.pop(node))
                states = states.take(states.bound <= target)
                if not len(states):
                    continue
                if time.monotonic() > deadline or found.states > budget:
                    waiting = [*stack, frontier, {node: [states]}]
                    lowest = min(float(s.bound.min(initial=np.inf)) for f in waiting for b in f.values() for s in b)
                    found.bound, found.stopped = min(found.bound, lowest), time.monotonic() > deadline
                    return found
                if node == self.graph.num_nodes:
                    winner = int(np.lexsort(states.values[::-1])[0])
                    values = states.values[:, winner]
                    if best is None or tuple(values) < tuple(best):
                        best, found.values, found.path = values, values, _walk(states.trail, winner)
                        target = min(target, float(values[0]))
                    continue
                states = self._cut(self._undominated(states), node, target, dive=forget)
                if len(states) > width:
                    order = np.argpartition(states.bound, width)
                    rest = states.take(order[width:])
                    if forget:
                        found.bound = min(found.bound, float(rest.bound.min()))
                    else:
                        stack.append({node: [rest]})
                    states = states.take(order[:width])
                found.states += len(states)
                for to, block in self._advance(states, node, target):
                    frontier.setdefault(to, []).append(block)
        return found

    def _undominated(self, states: States) -> States:
        """Without those that are seen to be dominated; given up where there are hardly any."""
        if len(states) < 2 or (self.looked_at > LOOKED_AT and self.dominated < WORTH_LOOKING * self.looked_at):
            return states
        kept = undominated(states.values, states.memory if self.pairs.any else None)
        self.looked_at += len(states)
        self.dominated += len(states) - len(kept)
        return states.take(kept)

    def _cut(self, states: States, node: int, target: float, *, dive: bool) -> States:
        """Learn planes here while it pays, and drop what they show to be above the target."""
        if self.graph.num_nodes - node < 3:
            return states
        if self.wait[node] and not dive:
            self.wait[node] -= 1
            return states
        worth, patience = (DIVE_WORTH, DIVE_PATIENCE) if dive else (WORTH, PATIENCE)
        is_open = np.zeros(self.num_layers, dtype=bool)
        is_open[self.graph.layer[node:]] = True
        in_vain = tries = 0
        while len(states) >= WORTH_LEARNING and in_vain < patience and tries < MOST_PIVOTS:
            which = (tries * 7919 + node * 104729) % len(states)
            prices = self.relaxation.prices(self.most - states.values[1:-1, which], is_open)
            tries += 1
            if prices is None:
                break
            plane = self.planes.learn(prices.rows, node, proof=not prices.feasible)
            states.bound = np.maximum(states.bound, self.planes.one(plane, states.values, node))
            lives = states.bound <= target
            in_vain = 0 if len(states) - int(lives.sum()) >= worth else in_vain + 1
            if not lives.all():
                states = states.take(lives)
        if tries:
            self.pause[node] = 0 if tries > in_vain else min(LONGEST_PAUSE, 2 * self.pause[node] + 1)
            self.wait[node] = self.pause[node]
        return states

    def _advance(self, states: States, node: int, target: float) -> list[tuple[int, States]]:
        """The successors of all states, by the node they come to."""
        edges = np.arange(self.graph.first[node], self.graph.first[node + 1])
        step = self.reduced[edges]
        slack = target - self.planes.one(0, states.values, node)
        blocks = []
        num_edges = max(1, CANDIDATES // max(1, len(states)))
        for some in (edges[k : k + num_edges] for k in range(0, len(edges), num_edges)):
            fits = step[some - edges[0]][:, None] <= slack[None] + self.planes.error
            taken, index = np.nonzero(fits)
            edge = some[taken]
            for to in np.unique(self.graph.to[some]).tolist():
                mine = self.graph.to[edge] == to
                block = self._arrive(states, node, to, edge[mine], index[mine], target)
                if len(block):
                    blocks.append((to, block))
        return blocks

    def _arrive(self, states: States, node: int, to: int, edge: np.ndarray, index: np.ndarray, target: float) -> States:
        values = states.values[:, index] + self.graph.values[:, edge]
        memory = states.memory[:, index]
        if self.pairs.any:
            extra, memory = self.pairs.cross(memory, edge)
            values[0] += extra
        fits = (values[1:-1] + self.least_rows[:, to][:, None] <= self.most[:, None]).all(axis=0)
        if not fits.all():
            values, memory, edge, index = values[:, fits], memory[:, fits], edge[fits], index[fits]
        bound = self.planes.bound(values, to)
        if to == self.graph.num_nodes:
            bound = values[0].copy()
        fits = bound <= target
        trail = Trail(
            (states.trail,),
            np.zeros(int(fits.sum()), dtype=np.int16),
            index[fits].astype(np.int32),
            edge[fits].astype(np.int32),
        )
        return States(values[:, fits], bound[fits], memory[:, fits], trail)


def _join(blocks: list[States]) -> States:
    if len(blocks) == 1:
        return blocks[0]
    parents = tuple(parent for block in blocks for parent in block.trail.parents)
    offset = np.cumsum([0, *(len(block.trail.parents) for block in blocks)])
    which = np.concatenate([block.trail.which + offset[k] for k, block in enumerate(blocks)]).astype(np.int16)
    return States(
        np.concatenate([block.values for block in blocks], axis=1),
        np.concatenate([block.bound for block in blocks]),
        np.concatenate([block.memory for block in blocks], axis=1),
        Trail(
            parents,
            which,
            np.concatenate([block.trail.index for block in blocks]),
            np.concatenate([block.trail.edge for block in blocks]),
        ),
    )


def _walk(trail: Trail, state: int) -> np.ndarray:
    edges = []
    while trail.parents:
        edges.append(int(trail.edge[state]))
        trail, state = trail.parents[int(trail.which[state])], int(trail.index[state])
    return np.array(edges[::-1], dtype=np.int64)
