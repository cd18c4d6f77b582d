"""The exact solver: dominance, the relaxation, fixing by reduced cost, then the search of the core that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from inlay.solver._dominance import useful
from inlay.solver._graph import Graph, build_graph
from inlay.solver._labels import Found, Search
from inlay.solver._pairs import OpenPairs, spread
from inlay.solver._planes import Learnt, Planes
from inlay.solver._relax import Edges, PairColumns, Prices, Relaxation
from inlay.solver._start import round_and_swap, shake_and_swap

if TYPE_CHECKING:
    from inlay.solver._deep import Deep

FIRST_SHARE = 0.25
"""The first complete search looks for answers in this share of the way from the bound to the best answer at hand."""

SHARE_GROWTH = 1.4
"""A complete search that ends empty raises the bound; the next one looks so much further."""

NEARLY_ALL = 0.8
"""From this share on a search looks all the way: what is left is not worth a search of its own."""

SHAKES = 40
"""Tries to better the best answer by exchanges, made each time the searches have seen so many states more."""

SHAKE_AFTER = 3000
"""States of all searches after which shaking comes first; four times as many after each time."""

FIRST_BUDGET = 60_000
"""States after which a complete search is given up for a dive; four times as many after each dive."""

WIDTH = 3000
"""States of a node that a complete search takes on at a time; the others wait."""

DIVE_WIDTH = 300
"""States of a node that a dive keeps; it forgets the others. Four times as many after a dive that found nothing."""

DIFFERENT_BUDGET = 5000
"""FIRST_BUDGET where rows were added, which count agreements with earlier answers: few states dominate others there."""

DIFFERENT_DIVE_WIDTH = 1500
"""DIVE_WIDTH where rows were added."""

DEEP_BUDGET, DEEP_GROWTH = 200_000, 64
"""States after which a deep search is given up for a dive, and so many times as many after each dive."""

MOST_STEPS = 30
"""Searches whose targets rise by the gap alone; around a score of 0 it is next to nothing."""

LAST_DIVE_WIDTH = 20_000
"""From this width on nothing is forgotten: without any answer at hand, diving ends in a complete search."""


@dataclass(frozen=True)
class Outcome:
    """Indices of the picked edges or None; no answer is below `bound` (None: none is known); `proven` ends the matter.

    Proven without picks: there is no answer (within what was asked for). `prices` [m] are the relaxation's, in score
    per unit of each row.
    """

    picks: np.ndarray | None
    bound: int | None
    proven: bool
    prices: np.ndarray


class Exact:
    """Repeated exact minimisation over the same edges: other right-hand sides, more rows, the relaxation kept warm."""

    def __init__(self, num_layers: int, edges: Edges, tie: np.ndarray, pairs: PairColumns, *, spare: int = 1) -> None:
        """`edges` sorted by layer, in canonical order within it; `tie` [E] breaks ties between equal answers.

        An edge that `spare` others dominate is never needed: 1 for a single answer, one more for each difference row.
        """
        pairs = _possible(pairs, edges)
        optimistic, pessimistic = edges.score.copy(), edges.score.copy()
        for side in (pairs.first, pairs.second):
            np.add.at(optimistic, side, np.minimum(pairs.score, 0))
            np.add.at(pessimistic, side, np.maximum(pairs.score, 0))
        self._alive = np.flatnonzero(useful(edges, optimistic, pessimistic, spare))
        self._edges, self._tie = edges.take(self._alive), tie[self._alive]
        self._pairs = _among(pairs, self._alive, len(edges))
        self._num_layers = num_layers
        self._relaxation = Relaxation(num_layers, self._edges, self._pairs)
        self._budget, self._dive_width = FIRST_BUDGET, DIVE_WIDTH
        self._learnt: Learnt | None = None
        self._open: _Open | None = None

    def add_row(self, coefficients: np.ndarray) -> None:
        """One more row [E] over the edges given first."""
        row = coefficients[self._alive]
        self._relaxation.add_row(row)
        self._budget, self._dive_width = DIFFERENT_BUDGET, DIFFERENT_DIVE_WIDTH
        if int(self._edges.span.max(initial=1)) == 1 and not len(self._pairs.score):
            self._learnt = self._learnt or Learnt()
        edges = self._edges
        self._edges = Edges(edges.start, edges.span, edges.score, np.vstack([edges.rows, row]))

    def minimise(
        self,
        most: np.ndarray,
        *,
        gap: float = 0.0,
        deadline: float = math.inf,
        starts: Sequence[np.ndarray] = (),
        at_most: float = math.inf,
        at_least: float = -math.inf,
    ) -> Outcome:
        """The best edges with rows at most `most` [m]; with a `gap`, any answer proven to be within that share of it.

        `starts` are answers at hand, as edges given first; they need not meet the rows. Answers with a score above
        `at_most` do not count; it is known that none is below `at_least`.
        """
        edges = self._edges
        prices = self._relaxation.prices(most)
        if prices is not None and not prices.feasible:
            if self._excludes(prices.rows, most):
                return Outcome(None, None, True, prices.rows)
            prices = None
        if prices is None:
            prices = Prices(np.zeros(len(most)), np.zeros((len(self._pairs.score), 2)), True)
        hunt = _Hunt(self, most, prices, deadline, at_most)
        hunt.bound = max(hunt.bound, at_least)
        is_plain = int(edges.span.max()) == 1 and not len(self._pairs.score)
        if is_plain:
            hunt.offer(round_and_swap(edges, most, hunt.weight))
        for start in starts:
            hunt.offer(self._at_hand(start, most))
        if self._open is not None:
            hunt.resume(self._open, gap)
        hunt.close(gap, may_shake=is_plain)
        self._open = hunt.open
        picks = None if hunt.best is None else self._alive[hunt.best]
        bound = None if hunt.bound == math.inf else int(hunt.bound)
        return Outcome(picks, bound, hunt.closed, prices.rows)

    def _at_hand(self, start: np.ndarray, most: np.ndarray) -> np.ndarray | None:
        place = np.searchsorted(self._alive, start)
        if (place == len(self._alive)).any() or (self._alive[place] != start).any():
            return None
        return place if (self._edges.rows[:, place].sum(axis=1) <= most).all() else None

    def _excludes(self, prices: np.ndarray, most: np.ndarray) -> bool:
        """Whether the weighted sum of the rows alone proves, beyond rounding, that nothing meets them."""
        weight = prices @ self._edges.rows
        size = float((np.abs(prices) @ np.abs(self._edges.rows)).max(initial=0)) * self._num_layers
        error = 1e-15 * (self._num_layers + 8) * (size + float(np.abs(prices * most).sum()))
        return bool(_distances(self._num_layers, self._edges, weight)[0][-1] > prices @ most + error)


@dataclass(frozen=True)
class _Core:
    """The edges `kept` as a graph, with what a search of it needs."""

    kept: np.ndarray
    graph: Graph
    pairs: OpenPairs
    relaxation: Relaxation


@dataclass(frozen=True)
class _Open:
    """A deep search that has more to search, and what it was made for."""

    deep: Deep
    core: _Core
    most: np.ndarray
    gap: float


class _Hunt:
    """One minimisation: the best answer so far, the bound so far, and searches until they meet."""

    def __init__(self, exact: Exact, most: np.ndarray, prices: Prices, deadline: float, at_most: float) -> None:
        self._most, self._prices, self._deadline, self._at_most = most, prices, deadline, at_most
        self._edges, self._pairs, self._tie = exact._edges, exact._pairs, exact._tie
        self._num_layers = exact._num_layers
        self._budget, self._dive_width, self._learnt = exact._budget, exact._dive_width, exact._learnt
        part = spread(self._pairs, prices.pairs)
        self.weight = part.score(self._edges) + prices.rows @ self._edges.rows
        forward, backward = _distances(self._num_layers, self._edges, self.weight)
        self._floor = float(forward[-1]) + part.constant - float(prices.rows @ most)
        through = forward[self._edges.start] + self.weight + backward[self._edges.start + self._edges.span]
        self._reduced = through - forward[-1]
        size = np.abs(part.score(self._edges)) + np.abs(prices.rows) @ np.abs(self._edges.rows)
        self._error = (
            1e-15
            * (self._num_layers + 8)
            * (float(size.max(initial=0)) * self._num_layers + float(np.abs(prices.rows * most).sum()))
        )
        self.bound: float = math.ceil(self._floor - self._error)
        self.best: np.ndarray | None = None
        self.ceiling = math.inf
        self.closed = False
        self.open: _Open | None = None
        """Ended with an answer within the gap."""
        self._paused: _Open | None = None
        """Ended with its budget used up."""

    def resume(self, held: _Open, gap: float) -> None:
        """Go on with the search that found the last answer, if what was added since is one row."""
        if gap != held.gap or not np.array_equal(self._most[:-1], held.most):
            return
        if not held.deep.add_row(self._edges.rows[-1, held.core.kept], float(self._most[-1])):
            return
        if self._is_open(gap):
            target = held.deep.target
            found = held.deep.run(target, deadline=self._deadline, best=None, gap=gap, at_least=self.bound)
            if found.bound == math.inf:
                self._raise_bound(target, math.inf)
            self._offer_found(held.core, found)
        if held.deep.is_open:
            self.open = replace(held, most=self._most)

    def offer(self, picks: np.ndarray | None) -> None:
        """Keep these edges, which meet the rows, if better in score, rows and tie weight than the best so far."""
        if picks is None:
            return
        picks = np.sort(picks)  # by layer
        values = tuple(self._values(picks))
        if values[0] <= self._at_most and (self.best is None or values < tuple(self._values(self.best))):
            self.best, self.ceiling = picks, float(values[0])

    def close(self, gap: float, *, may_shake: bool) -> None:
        """Search until the bound meets the best answer (within the share `gap` of it), or time is up.

        Complete searches for answers a little above the bound either find the best or raise the bound. Where they take
        too many states, a better answer first makes them smaller: a dive looks for one.
        """
        share, budget, dive_width, dive, deep = FIRST_SHARE, self._budget, self._dive_width, False, False
        num_states, shake_after, steps = 0, SHAKE_AFTER, 0
        generator = np.random.default_rng(0)
        while self._is_open(gap):
            if may_shake and num_states > shake_after:
                shake_after *= 4
                self._shake(gap, generator)
                continue
            wanted = self._wanted(gap)
            room = wanted - self._floor
            dive = dive or not math.isfinite(wanted)
            target = wanted if dive or share >= 1 else self._floor + room * share
            if gap and self._learnt is not None and not dive and steps < MOST_STEPS:
                # An answer up to here is proven by the bound at hand, and each step further multiplies the states.
                target = min(wanted, self.bound / (1 - math.copysign(gap, self.bound)))
            if target < self.bound:
                share *= SHARE_GROWTH
                continue
            if dive:
                found = self._search(target, dive_width, forget=dive_width < LAST_DIVE_WIDTH)
            elif deep:
                found = self._search_deep(target, budget, gap)
            else:
                found = self._search(target, WIDTH, budget=budget)
            num_states += 0 if deep else found.states  # a deep search has millions, and no use for a shake
            complete = found.bound == math.inf
            steps += complete
            self._raise_bound(target, math.inf if complete else math.ceil(found.bound - self._error))
            if found.stopped or (complete and (target == wanted or found.path is not None)):
                break
            if found.path is not None:
                new_room = self._wanted(gap) - self._floor
                if new_room > 0 and math.isfinite(room):
                    # The same target is a larger share of the way to the better answer.
                    share = min(1.0, share * room / new_room)
            elif dive:
                dive_width *= 4
            elif complete:
                share *= SHARE_GROWTH
            if share > NEARLY_ALL:
                share = 1.0
            if complete:
                dive = False
            elif self._learnt is not None and not deep and not dive:
                deep, budget = True, DEEP_BUDGET
            else:
                dive = not dive
                budget *= (DEEP_GROWTH if deep else 4) if dive else 1
        none_left = self.bound == math.inf or self.bound > self._at_most
        self.closed = none_left if self.best is None else self.bound == self.ceiling

    def _shake(self, gap: float, generator: np.random.Generator) -> None:
        """Look for better answers near the best one, until it is within the share `gap` or some tries are over."""
        for _ in range(SHAKES):
            if self.best is None or self.bound >= self._wanted(gap) or time.monotonic() > self._deadline:
                return
            self.offer(shake_and_swap(self._edges, self._most, self.weight, self.best, generator))

    def _is_open(self, gap: float) -> bool:
        if self.best is None:
            return self.bound <= self._at_most
        # Without a gap the search goes on at bound == ceiling: among equals the canonical answer is wanted.
        return gap == 0 or self.bound < self._wanted(gap)

    def _raise_bound(self, target: float, left_out: float) -> None:
        """After a search up to `target` that left out answers from `left_out` on (inf: none)."""
        above = math.floor(target) + 1 if math.isfinite(target) else math.inf
        self.bound = min(max(self.bound, min(left_out, above)), self.ceiling)

    def _wanted(self, gap: float) -> float:
        """Answers above this are of no interest."""
        if self.best is None:
            return self._at_most
        return -math.inf if gap == math.inf else self.ceiling - gap * abs(self.ceiling)

    def _search(self, target: float, width: int, *, forget: bool = False, budget: float = math.inf) -> Found:
        """Search what the target leaves after fixing by reduced cost; an answer found is offered."""
        core = self._core(target)
        if core is None:
            return Found()
        planes = Planes(core.graph, self._most)
        planes.learn(self._prices.rows, 0)
        search = Search(core.graph, self._most, planes, core.relaxation, self._num_layers, core.pairs)
        best = None if self.best is None else self._values(self.best)
        found = search.run(target, width, forget=forget, deadline=self._deadline, best=best, budget=budget)
        self._offer_found(core, found)
        return found

    def _search_deep(self, target: float, budget: float, gap: float) -> Found:
        """The same, deep and complete, for lines without pair terms whose states do not dominate each other."""
        from inlay.solver._deep import Deep  # compiled, which takes time that most problems do not need

        held, self._paused = self._paused, None
        if held is None or target > held.deep.target:
            core = self._core(target)
            if core is None or self._learnt is None:
                return Found()
            if core.graph.num_nodes == 0:
                return self._search(target, WIDTH)
            prices, most, learnt = self._prices.rows, self._most, self._learnt
            deep = Deep(core.graph, most, prices, core.relaxation, self._num_layers, learnt, target)
            held = _Open(deep, core, most, gap)
        best = None if self.best is None else self._values(self.best)
        found = held.deep.run(target, deadline=self._deadline, best=best, gap=gap, at_least=self.bound, budget=budget)
        self._offer_found(held.core, found)
        if held.deep.is_open:
            self.open = held
        elif found.bound < math.inf:
            self._paused = held
        return found

    def _core(self, target: float) -> _Core | None:
        """What the target leaves after fixing by reduced cost; None when a layer is left without choices."""
        kept = np.flatnonzero(self._reduced <= target - self._floor + 2 * self._error)
        edges = self._edges.take(kept)
        pairs = _among(self._pairs, kept, len(self._edges))
        alive_pairs = np.isin(self._pairs.first, kept) & np.isin(self._pairs.second, kept)
        part = spread(pairs, self._prices.pairs[alive_pairs])
        asked = np.zeros(len(kept), dtype=bool)
        asked[pairs.first] = asked[pairs.second] = True
        edges = Edges(edges.start, edges.span, part.score(edges), edges.rows)
        if not self._covers(edges):
            return None
        graph = build_graph(self._num_layers, edges, self._tie[kept], self._reduced[kept], asked)
        graph.base[0] += part.constant
        open_pairs = OpenPairs(graph, part, edges.span[graph.edge])
        return _Core(kept, graph, open_pairs, Relaxation(self._num_layers, edges))

    def _offer_found(self, core: _Core, found: Found) -> None:
        if found.path is not None:
            self.offer(core.kept[np.concatenate([core.graph.settled, core.graph.edge[found.path]])])

    def _covers(self, edges: Edges) -> bool:
        return len(edges) > 0 and bool(np.isfinite(_distances(self._num_layers, edges, np.zeros(len(edges)))[0][-1]))

    def _values(self, picks: np.ndarray) -> np.ndarray:
        score = int(self._edges.score[picks].sum())
        taken = np.zeros(len(self._edges), dtype=bool)
        taken[picks] = True
        score += int(self._pairs.score[taken[self._pairs.first] & taken[self._pairs.second]].sum())
        rows = self._edges.rows[:, picks].sum(axis=1)
        return np.array([score, *rows.tolist(), int(self._tie[picks].sum())], dtype=float)


def _possible(pairs: PairColumns, edges: Edges) -> PairColumns:
    """Without the pairs whose choices share a layer, which are never taken together."""
    start, end = edges.start, edges.start + edges.span
    apart = (start[pairs.first] >= end[pairs.second]) | (start[pairs.second] >= end[pairs.first])
    return PairColumns(pairs.first[apart], pairs.second[apart], pairs.score[apart])


def _among(pairs: PairColumns, kept: np.ndarray, num_edges: int) -> PairColumns:
    """The pairs whose edges are both in `kept`, in its numbering."""
    place = np.full(num_edges, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    both = (place[pairs.first] >= 0) & (place[pairs.second] >= 0)
    return PairColumns(place[pairs.first[both]], place[pairs.second[both]], pairs.score[both])


def _distances(num_layers: int, edges: Edges, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least weight from the first layer to each [L + 1] and from each to the end [L + 1]; inf where none leads."""
    first = np.searchsorted(edges.start, np.arange(num_layers + 1))
    if int(edges.span.max()) == 1 and (np.diff(first) > 0).all():
        forward = np.concatenate([[0.0], np.cumsum(np.minimum.reduceat(weight, first[:-1]))])
        return forward, forward[-1] - forward
    end = edges.start + edges.span
    forward, backward = np.full(num_layers + 1, np.inf), np.full(num_layers + 1, np.inf)
    forward[0] = backward[num_layers] = 0.0
    for layer in range(num_layers):
        some = slice(first[layer], first[layer + 1])
        np.minimum.at(forward, end[some], forward[layer] + weight[some])
    for layer in range(num_layers - 1, -1, -1):
        some = slice(first[layer], first[layer + 1])
        backward[layer] = (weight[some] + backward[end[some]]).min(initial=np.inf)
    return forward, backward
