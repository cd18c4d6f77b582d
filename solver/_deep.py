"""Deep search of the core: depth first, a state at a time, in compiled code that tries millions of edges a second.

The other search (_labels.py) takes all states of a node at once, because most of them are dominated by others. Where
rows count agreements with earlier answers hardly any are, and bounds alone decide. Two kinds are used here: planes, as
there, learnt by solving the relaxation at states that the search is at; and, for the last nodes, tables of all ways to
the end, which are exact in the three rows that weigh most and price the others.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from inlay.solver._compiled import (
    ARRIVED,
    BINS,
    CHUNK,
    EXHAUSTED,
    LANES,
    PLENTY,
    ROUNDING,
    TOP,
    called,
    descend,
    enter,
    tabulate,
)
from inlay.solver._graph import Graph
from inlay.solver._labels import Found
from inlay.solver._planes import Learnt, Plane, plane_of
from inlay.solver._relax import Relaxation

BAND = 6
"""Nodes of a band, which has planes of its own: the root's and the newest."""

EMPTY = -1e30
"""What a plane that is not there says."""

LEAST_RATE = 0.02
"""Bands get new planes in proportion to the rate at which theirs cut the path they were learnt at, or to this."""

VECTOR = 16
"""Budgets are padded to a multiple of this."""

FEWEST_TRIES, MOST_TRIES, TRIES_SHARE = 10_000, 80_000, 60
"""After this share (one in so many) of all tries, within these bounds, the relaxation is solved for one more plane."""

MOST_WAYS = 100_000
"""Ways to the end that are tabulated."""

MOST_TABLES, MOST_CELLS, CELLS_A_WAY = 24, 64**3, 30
"""Tables, cells of each at most, and cells for each way to the end where there are few."""

UNTIL_TABLES = 4
"""Pauses before tables are made: a search that ends earlier does not need them."""

SPARE_ROWS = 8
"""Rows at least for which there is place when a search goes on."""

FURTHEST = 3.0
"""A share of a plane's budget is cut to so many times the distance from the bound to the target at the start."""


class Deep:
    """A search of a line `graph` without pair terms for the best path of score at most a target, ties included.

    Attributes:
        target: falls with the answers found: what is searched from then on is searched up to there only.
        is_open: the last run ended with an answer within the gap, and there is more to search.
    """

    def __init__(
        self,
        graph: Graph,
        most: np.ndarray,
        prices: np.ndarray,
        relaxation: Relaxation,
        num_layers: int,
        learnt: Learnt,
        target: float,
    ) -> None:
        """`prices` [m] are the root's; `relaxation` gives those of other states; `learnt` is used and added to."""
        self._graph, self._most, self._prices = graph, most.astype(float), prices
        self._relaxation, self._num_layers, self._learnt = relaxation, num_layers, learnt
        self._root = plane_of(graph, self._most, prices)
        reduced = self._root.reduced(graph)
        node = np.repeat(np.arange(graph.num_nodes), np.diff(graph.first))
        self._order = np.lexsort((reduced, node))
        self._reduced = reduced[self._order]
        self._edge_values = np.ascontiguousarray(graph.values[:-1, self._order].T)
        self.is_open = False

        self._starts = np.arange(0, max(1, graph.num_nodes - 3), BAND)
        self._ends = np.append(self._starts[1:], graph.num_nodes)
        self._band_of = np.repeat(np.arange(len(self._starts)), self._ends - self._starts)
        self._priced, self._score, self._rows = LANES, LANES + 1, LANES + 2 + np.arange(len(most))
        self._tries, self._pauses = FEWEST_TRIES, 0
        self._prepare(target)

    def run(
        self,
        target: float,
        *,
        deadline: float,
        best: np.ndarray | None,
        gap: float,
        at_least: float,
        budget: float = np.inf,
    ) -> Found:
        """Search until nothing is left, `deadline` or about `budget` states of all runs; another run goes on there.

        `best` are the values of an answer at hand: only better ones are returned. With a `gap` what is left after one
        is searched only for answers that are better by that share, of which there are none below `at_least`: then the
        run ends there. What was searched holds no other answer, also when the next run has a lower `target` or more
        rows.
        """
        found = Found()
        self._lower_target(target)
        self.is_open = False
        while (code := self._descend(self._tries)) != EXHAUSTED:
            if code == ARRIVED:
                path = self._path(int(self._counters[0]) + 1)
                values = self._graph.base + self._graph.values[:, path].sum(axis=1)
                is_answer = (values[1:-1] <= self._most).all() and values[0] <= self.target
                if is_answer and (best is None or tuple(values) < tuple(best)):
                    best, found.values, found.path = values, values, path
                    wanted = float(values[0] - gap * abs(values[0]))
                    if gap > 0 and wanted <= at_least:
                        found.bound, self.is_open = wanted, True
                        break
                    self._lower_target(wanted)
                continue
            if time.monotonic() > deadline or self._counters[2] > budget:
                found.bound, found.stopped = self._left_out(), time.monotonic() > deadline
                break
            self._pauses += 1
            if self._pauses == UNTIL_TABLES:
                self._fill_tables()
            self._learn_here()
            self._tries = int(np.clip(self._counters[1] // TRIES_SHARE, FEWEST_TRIES, MOST_TRIES))
        if gap > 0 and found.path is not None:
            found.bound = min(found.bound, self.target)
        found.states = int(self._counters[2])
        return found

    def _prepare(self, target: float) -> None:
        graph, num_nodes, num_bands = self._graph, self._graph.num_nodes, len(self._starts)
        num_values = len(self._most) + 1
        num_budgets = int(self._rows[-1]) + 1 + SPARE_ROWS
        num_budgets += -num_budgets % VECTOR
        self.target = target
        self._room = target - float(self._root.at(graph.base, 0))
        self._counters = np.array([-1, 0, 0])
        self._cursor = np.zeros(num_nodes + 1, dtype=np.int64)
        self._share = np.zeros((len(graph.edge), num_budgets), dtype=np.int32)
        self._budget = np.full((num_nodes + 1, num_budgets), PLENTY, dtype=np.int32)

        size = (num_bands, LANES)
        self._weights, self._scale = np.zeros((*size, num_values)), np.zeros(size, np.float32)
        self._offset = np.zeros((*size, int((self._ends - self._starts).max())))
        self._constant, self._is_proof = np.full(size, EMPTY), np.ones(size, dtype=bool)
        height = max(CHUNK, num_values + 1 + -(num_values + 1) % 4)
        self._blocks = np.zeros((num_bands, height, LANES), dtype=np.float32)
        self._blocks[:, 0] = EMPTY
        self._num_put = np.zeros(num_bands, dtype=np.int64)
        self._num_learnt, self._num_cut, self._credit = np.ones(num_bands), np.ones(num_bands), np.zeros(num_bands)
        self._fill_centre()
        self._band = np.full(num_nodes + 1, -1)
        self._band[self._starts] = np.arange(num_bands)
        self._entered = np.zeros((num_bands, num_values))
        self._entered[0] = graph.base[:-1]
        root = plane_of(graph, self._most, self._prices[None])
        for band in range(num_bands):
            self._write(band, np.zeros(1, dtype=np.int64), root)
        self._recall()

        self._global_scale = np.ones(num_budgets)
        for k in range(len(self._most)):
            self._fill_row(k)
        self._fill_plane(self._score, plane_of(graph, self._most, np.zeros(len(self._most))))
        self._fill_priced()
        away = np.zeros(height, dtype=np.float32)
        away[0], away[1 : num_values + 1] = 1.0, self._entered[0] - self._centre[0]
        sums = np.zeros(LANES, dtype=np.float32)
        lives = called(enter, away, self._blocks[0], self._scale[0], sums, self._budget[0])
        self._counters[0] = 0 if lives and (self._budget[0] >= 0).all() else -1

    def _fill_centre(self) -> None:
        """The middle [b, r] of the values that states can have where bands start, and how far from it they can be."""
        graph = self._graph
        low, high = (reach.reduceat(graph.values[:-1], graph.first[:-1], axis=1) for reach in (np.minimum, np.maximum))
        zero = np.zeros((len(low), 1))
        middle, apart = (np.hstack([zero, np.cumsum(v, axis=1)]) for v in ((low + high) / 2, (high - low) / 2))
        self._centre = np.ascontiguousarray(middle.T[self._starts] + graph.base[:-1])
        self._apart = apart.T[self._starts]

    def _fill_row(self, k: int) -> None:
        graph, row = self._graph, self._graph.values[k + 1]
        node = np.repeat(np.arange(graph.num_nodes), np.diff(graph.first))
        least = graph.rest(row)
        beyond = row + least[graph.to] - least[node]
        self._fill(int(self._rows[k]), beyond, self._most[k] - graph.base[k + 1] - least[0])

    def add_row(self, row: np.ndarray, most: float) -> bool:
        """One more `row` [E] of at most `most` over the edges that the relaxation was made of; False: has no place."""
        graph, column = self._graph, int(self._rows[-1]) + 1
        if column == self._share.shape[1]:
            return False
        values = np.insert(graph.values, -1, row[graph.edge], axis=0)
        base = np.insert(graph.base, -1, row[graph.settled].sum())
        self._graph = replace(graph, values=values, base=base)
        self._relaxation.add_row(row)
        self._most, self._prices = np.append(self._most, most), np.append(self._prices, 0.0)
        self._root = replace(self._root, weights=np.append(self._root.weights, 0.0))
        self._edge_values = np.ascontiguousarray(values[:-1, self._order].T)
        self._weights = np.concatenate([self._weights, np.zeros((*self._weights.shape[:2], 1))], axis=2)
        self._rows = np.append(self._rows, column)
        self._fill_centre()
        if len(self._most) + 2 > self._blocks.shape[1]:
            self._blocks = np.pad(self._blocks, ((0, 0), (0, 4), (0, 0)))
        self._fill_row(len(self._most) - 1)
        depth, states = int(self._counters[0]), self._states()
        begun = self._starts[self._starts <= depth]
        self._entered = np.zeros((len(self._starts), len(self._most) + 1))
        self._entered[: len(begun)] = states[:-1, begun].T
        if depth < 0:  # all of it was searched: a row more leaves nothing to go on with
            return True
        taken = self._share[self._cursor[:depth] - 1, column].astype(np.int64)
        along = self._budget[0, column] - np.concatenate([[0], np.cumsum(taken)])
        self._budget[: depth + 1, column] = np.maximum(along, -1)
        dead = np.flatnonzero(along < 0)
        if len(dead):
            self._counters[0] = dead[0] - 1
        return True

    def _fill_plane(self, column: int, plane: Plane) -> None:
        self._fill(column, plane.reduced(self._graph), self.target - float(plane.at(self._graph.base, 0)))

    def _fill(self, column: int, shares: np.ndarray, room: float) -> None:
        """A budget that holds from the first node to the last: `room` at the start, of which edges take `shares`."""
        scale = TOP / max(room, 1e-6)
        self._share[:, column] = np.minimum(np.floor(np.maximum(shares[self._order], 0.0) * scale), PLENTY)
        self._budget[0, column] = np.ceil(room * scale) + 1 if room >= 0 else -1
        self._global_scale[column] = scale

    def _fill_priced(self) -> None:
        """The budget of the tables: free of the three rows of highest price times spread, which these keep exactly."""
        weight = self._prices * self._graph.values[1:-1].std(axis=1)
        exact = np.resize(np.argsort(-weight, kind="stable")[:3], 3)
        prices = self._prices.copy()
        prices[exact] = 0.0
        self._exact_rows = self._rows[exact]
        self._fill_plane(self._priced, plane_of(self._graph, self._most, prices))
        self._table = np.full(self._graph.num_nodes + 1, -1)
        self._tables = np.zeros((MOST_TABLES, MOST_CELLS), dtype=np.int32)
        self._cells = np.zeros((MOST_TABLES, 3, BINS), dtype=np.int64)
        self._bins, self._sizes = np.zeros((MOST_TABLES, 3)), np.zeros((MOST_TABLES, 3), dtype=np.int64)

    def _fill_tables(self) -> None:
        called(
            tabulate,
            self._graph.first,
            self._share,
            self._exact_rows,
            self._priced,
            self._reduced,
            self._room + 2 * float(self._root.error),
            MOST_WAYS,
            CELLS_A_WAY,
            self._table,
            self._tables,
            self._cells,
            self._bins,
            self._sizes,
        )

    def _descend(self, tries: int) -> int:
        return called(
            descend,
            self._graph.first,
            self._share,
            self._edge_values,
            self._budget,
            self._cursor,
            self._counters,
            tries,
            self._band,
            self._entered,
            self._centre,
            self._blocks,
            self._scale,
            self._table,
            self._tables,
            self._cells,
            self._bins,
            self._sizes,
            self._exact_rows,
            self._priced,
        )

    def _path(self, length: int) -> np.ndarray:
        """The first edges of the path that the search is at, as edges of the graph."""
        path: np.ndarray = self._order[self._cursor[:length] - 1]
        return path

    def _states(self) -> np.ndarray:
        """Values [m + 2, d + 1] of the state that the search is at, as it was at each node."""
        path = self._path(int(self._counters[0]))
        states: np.ndarray = np.cumsum(np.column_stack([self._graph.base, self._graph.values[:, path]]), axis=1)
        return states

    def _learn_here(self) -> None:
        """Solve the relaxation at the start of one of the bands that the path is in for another plane."""
        depth = int(self._counters[0])
        if depth < 0:
            return
        rate = np.maximum(self._num_cut / self._num_learnt, LEAST_RATE)[: self._band_of[depth] + 1]
        self._credit[: len(rate)] += rate / rate.sum()
        band = int(np.argmax(self._credit[: len(rate)]))
        self._credit[band] -= 1
        node, states = int(self._starts[band]), self._states()
        is_open = np.zeros(self._num_layers, dtype=bool)
        is_open[self._graph.layer[node:]] = True
        prices = self._relaxation.prices(self._most - states[1:-1, node], is_open)
        if prices is None:
            return
        self._learnt.add(prices, self._graph.num_nodes - node)
        plane = plane_of(self._graph, self._most, prices.rows[None], np.array([not prices.feasible]))
        self._num_learnt[band] += 1
        self._num_cut[band] += plane.at(states[:, node], node)[0] > (self.target if prices.feasible else 0)
        for near in self._bands_near(node):
            self._put(near, plane)

    def _recall(self) -> None:
        """Planes of the prices learnt by earlier searches."""
        known = [(p, self._graph.num_nodes - left) for p, left in self._learnt.planes if left <= self._graph.num_nodes]
        if not known:
            return
        prices = np.zeros((len(known), len(self._most)))
        for k, (some, _) in enumerate(known):
            prices[k, : len(some.rows)] = some.rows  # those of rows added since are 0
        planes = plane_of(self._graph, self._most, prices, np.array([not some.feasible for some, _ in known]))
        near = [self._bands_near(node) for _, node in known]
        for band in range(len(self._starts)):
            which = np.array([k for k, bands in enumerate(near) if band in bands], dtype=np.int64)
            if len(which):
                self._put(band, planes.take(which[-LANES + 1 :]))

    def _bands_near(self, node: int) -> range:
        """The band that `node` is in and the one before."""
        band = int(self._band_of[min(node, len(self._band_of) - 1)])
        return range(max(0, band - 1), band + 1)

    def _put(self, band: int, planes: Plane) -> None:
        """`planes` as the newest of a band; the path that the search is at is cut where it is above a limit."""
        slots = 1 + (self._num_put[band] + np.arange(len(planes.weights))) % (LANES - 1)
        self._num_put[band] += len(slots)
        self._write(band, slots, planes)

    def _write(self, band: int, slots: np.ndarray, planes: Plane) -> None:
        """`planes` into these slots of a band; slot 0 is the root's."""
        num_values = planes.weights.shape[1]
        constant = planes.weights @ self._centre[band] + planes.offset[:, self._starts[band]]
        least = np.where(planes.is_proof, 0.0, self.target)
        size = np.abs(planes.weights) @ self._apart[band] + np.abs(constant - least) + self._room
        constant -= (num_values + 16) * np.finfo(np.float32).eps * size
        self._constant[band, slots], self._is_proof[band, slots] = constant, planes.is_proof
        self._blocks[band][:, slots] = 0.0
        self._blocks[band][0, slots], self._blocks[band][1 : num_values + 1, slots] = constant - least, planes.weights.T
        first, begin, end = self._graph.first, int(self._starts[band]), int(self._ends[band])
        edges = slice(first[begin], first[end])
        shares = np.maximum(planes.reduced(self._graph, self._order[edges]), 0.0)
        shares = np.where(planes.is_proof[:, None], shares, np.minimum(shares, FURTHEST * max(self._room, 1.0)))
        # From this scale on a path through the band takes at most TOP, so that a budget cut to it never ends a path.
        scale = TOP / np.maximum(np.maximum.reduceat(shares, first[begin:end] - first[begin], axis=1).sum(axis=1), 1e-6)
        self._share[edges, slots] = np.floor(shares * scale[:, None]).T
        self._weights[band, slots], self._scale[band, slots] = planes.weights, scale
        self._offset[band, slots, : end - begin] = planes.offset[:, begin:end]
        if self._counters[0] >= begin:
            self._refill(band, slots, self._states())

    def _refill(self, band: int, slots: np.ndarray, states: np.ndarray) -> None:
        """Budgets of these planes along the path that the search is at; a dead path ends where it is dead."""
        begin, end = int(self._starts[band]), min(int(self._ends[band]), int(self._counters[0]) + 1)
        bound = self._weights[band, slots] @ states[:-1, begin:end] + self._offset[band, slots, : end - begin]
        most = np.where(self._is_proof[band, slots], 0.0, self.target)
        left = (most[:, None] - bound) * self._scale[band, slots, None]
        self._budget[begin:end, slots] = np.where(left < 0, -1, np.minimum(np.ceil(left), TOP) + ROUNDING).T
        dead = np.flatnonzero((left < 0).any(axis=0))
        if len(dead):
            self._counters[0] = begin + dead[0] - 1

    def _lower_target(self, target: float) -> None:
        if target >= self.target:
            return
        lower = self.target - target
        self.target = target
        above = np.maximum(self._constant - np.where(self._is_proof, 0.0, target), EMPTY)
        self._blocks[:, 0] = above
        states = self._states()
        depth = int(self._counters[0])
        for column in (self._priced, self._score):
            along = self._budget[: depth + 1, column]
            along -= np.minimum(np.floor(lower * self._global_scale[column]), TOP).astype(np.int32)
            dead = np.flatnonzero(along < 0)
            if len(dead):
                self._counters[0] = min(int(self._counters[0]), int(dead[0]) - 1)
        for band in range(len(self._starts)):
            if self._counters[0] >= self._starts[band]:
                self._refill(band, np.arange(LANES), states[:, : int(self._counters[0]) + 1])

    def _left_out(self) -> float:
        """The least bound of all that was not searched."""
        lowest = np.inf
        if self._counters[0] < 0:
            return lowest
        for node, state in enumerate(self._states().T):
            edge = int(self._cursor[node])
            if edge < self._graph.first[node + 1]:
                lowest = min(lowest, float(self._root.at(state, node)) + float(self._reduced[edge]))
        return lowest
