"""The linear relaxation, kept warm in HiGHS: prices for the rows, or a proof that nothing fits."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

ALL_COLUMNS = 6000
"""Up to so many edges the relaxation holds them all; above, it starts with a few and prices the others in."""

GUESSES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of the natural exchange rate between score and rows, whose cheapest edges are the first columns."""


@dataclass(frozen=True)
class Edges:
    """Choices as edges from layer `start` to layer `start + span`; `score` [E], `rows` [m, E], int64."""

    start: np.ndarray
    span: np.ndarray
    score: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def take(self, which: np.ndarray) -> Edges:
        """The edges with these indices (or this mask)."""
        return Edges(self.start[which], self.span[which], self.score[which], self.rows[:, which])


@dataclass(frozen=True)
class PairColumns:
    """Pair terms over edges: `first`, `second` [P] are edges, `score` [P] the addition when both are taken."""

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Prices:
    """What one solve of the relaxation says.

    `rows` [m] are prices >= 0 in score per unit of each row, `pairs` [P, 2] those of the two sides of each pair term;
    `feasible` False means that `rows` weighs the rows so that, the relaxation holds, nothing meets them.
    """

    rows: np.ndarray
    pairs: np.ndarray
    feasible: bool


NO_PAIRS = PairColumns(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


class Relaxation:
    """min score·x with each layer covered once and `rows`·x <= most, x >= 0: one simplex model, changed in place."""

    def __init__(self, num_layers: int, edges: Edges, pairs: PairColumns = NO_PAIRS) -> None:
        self._lib = _highs()
        self._num_layers, self._edges, self._pairs = num_layers, edges, pairs
        self._score_scale = float(np.abs(edges.score).max(initial=1))
        self._row_scale = np.maximum(np.abs(edges.rows).max(axis=1, initial=1), 1).astype(float)
        self._row_index = list(range(num_layers, num_layers + len(edges.rows)))
        self._model = self._lib.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("presolve", "off"), ("solver", "simplex")):
            self._model.setOptionValue(name, value)
        sifted = len(edges) > ALL_COLUMNS and not len(pairs.score)
        self._active = _first_columns(edges) if sifted else np.ones(len(edges), dtype=bool)
        self._order = np.flatnonzero(self._active)
        self._model.passModel(self._program(self._order))
        for pair in range(len(pairs.score)):
            self._add_pair(pair)

    def add_row(self, coefficients: np.ndarray) -> None:
        """One more row over the edges; the next solve starts from the last basis. Not for sifted relaxations."""
        self._add_all()
        edges = self._edges
        self._edges = Edges(edges.start, edges.span, edges.score, np.vstack([edges.rows, coefficients]))
        scale = float(np.abs(coefficients).max(initial=1))
        ordered = coefficients[self._order]
        index = np.flatnonzero(ordered).astype(np.int32)
        self._row_index.append(self._model.getNumRow())
        self._model.addRow(-self._lib.kHighsInf, 0.0, len(index), index, ordered[index] / scale)
        self._row_scale = np.append(self._row_scale, scale)

    def prices(self, most: np.ndarray, open_layers: np.ndarray | None = None) -> Prices | None:
        """Prices at the right-hand sides `most` [m]; None when the simplex method gives up.

        `open_layers` [L] (bool) says which layers are still to be covered; the others take no choice.
        """
        for row, value in zip(self._row_index, (most / self._row_scale).tolist(), strict=True):
            self._model.changeRowBounds(row, -self._lib.kHighsInf, value)
        if open_layers is not None:
            ones = open_layers.astype(float)
            self._model.changeRowsBounds(self._num_layers, np.arange(self._num_layers, dtype=np.int32), ones, ones)
        while True:
            self._model.run()
            status = self._model.getModelStatus()
            if status == self._lib.HighsModelStatus.kInfeasible:
                if not self._active.all():
                    self._add_all()
                    continue
                _, has_ray, ray = self._model.getDualRay()
                return self._read(np.array(ray), False) if has_ray else None
            if status != self._lib.HighsModelStatus.kOptimal:
                return None
            dual = np.array(self._model.getSolution().row_dual)
            if self._active.all() or not self._price_in(dual):
                return self._read(dual, True)

    def _read(self, dual: np.ndarray, feasible: bool) -> Prices:
        scale = self._score_scale
        rows = np.maximum(-dual[self._row_index], 0.0) * scale / self._row_scale
        pairs = np.zeros((len(self._pairs.score), 2))
        if feasible and len(pairs):
            first_pair = self._first_pair_row
            pairs = np.abs(dual[first_pair : first_pair + 2 * len(pairs)].reshape(-1, 2)) * scale
        return Prices(rows, pairs, feasible)

    def _columns(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start, index and value of the columns of these edges, compressed."""
        edges, m = self._edges, len(self._row_index)
        span = edges.span[which]
        start = np.concatenate([[0], np.cumsum(span + m)])
        index = np.empty(start[-1], dtype=np.int32)
        value = np.ones(start[-1])
        for step in range(int(span.max(initial=1))):
            reach = np.flatnonzero(span > step)
            index[start[reach] + step] = edges.start[which[reach]] + step
        for k, row in enumerate(self._row_index):
            index[start[:-1] + span + k] = row
            value[start[:-1] + span + k] = edges.rows[k, which] / self._row_scale[k]
        return start.astype(np.int32), index, value

    def _program(self, which: np.ndarray) -> Any:
        infinity, m = self._lib.kHighsInf, len(self._row_index)
        start, index, value = self._columns(which)
        program = self._lib.HighsLp()
        program.num_col_, program.num_row_ = len(which), self._num_layers + m
        program.col_cost_ = self._edges.score[which] / self._score_scale
        program.col_lower_, program.col_upper_ = np.zeros(len(which)), np.full(len(which), infinity)
        ones = np.ones(self._num_layers)
        program.row_lower_ = np.concatenate([ones, np.full(m, -infinity)])
        program.row_upper_ = np.concatenate([ones, np.zeros(m)])
        program.a_matrix_.format_ = self._lib.MatrixFormat.kColwise
        program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = start, index, value
        return program

    def _add_pair(self, pair: int) -> None:
        model, infinity = self._model, self._lib.kHighsInf
        first, second = int(self._pairs.first[pair]), int(self._pairs.second[pair])
        score = int(self._pairs.score[pair])
        if pair == 0:
            self._first_pair_row = model.getNumRow()
        both = model.getNumCol()
        model.addCol(score / self._score_scale, 0.0, infinity, 0, np.zeros(0, dtype=np.int32), np.zeros(0))
        if score < 0:
            for one in (first, second):
                model.addRow(-infinity, 0.0, 2, np.array([both, one], dtype=np.int32), np.array([1.0, -1.0]))
        else:
            columns = np.array([both, first, second], dtype=np.int32)
            model.addRow(-1.0, infinity, 3, columns, np.array([1.0, -1.0, -1.0]))
            model.addRow(-infinity, infinity, 0, np.zeros(0, dtype=np.int32), np.zeros(0))

    def _price_in(self, dual: np.ndarray) -> bool:
        """Bring in the edges that the prices find better than the columns at hand; False when there are none."""
        edges = self._edges
        cover = np.concatenate([[0.0], np.cumsum(dual[: self._num_layers])])
        prices = -dual[self._row_index] / self._row_scale
        reduced = edges.score / self._score_scale + prices @ edges.rows
        reduced -= cover[edges.start + edges.span] - cover[edges.start]
        reduced[self._active] = 0.0
        better = np.flatnonzero(reduced < -1e-9)
        if not len(better):
            return False
        better = better[np.lexsort((reduced[better], edges.start[better]))]
        place = np.arange(len(better)) - np.searchsorted(edges.start[better], edges.start[better])
        self._add(better[place < 3])
        return True

    def _add_all(self) -> None:
        if not self._active.all():
            self._add(np.flatnonzero(~self._active))

    def _add(self, which: np.ndarray) -> None:
        start, index, value = self._columns(which)
        n, infinity = len(which), self._lib.kHighsInf
        cost = self._edges.score[which] / self._score_scale
        self._model.addCols(n, cost, np.zeros(n), np.full(n, infinity), len(index), start[:-1], index, value)
        self._active[which] = True
        self._order = np.concatenate([self._order, which])


def _first_columns(edges: Edges) -> np.ndarray:
    """The cheapest edge of each layer and span at each of the guessed exchange rates, and for each row alone."""
    order = np.lexsort((edges.span, edges.start))
    group = np.flatnonzero(np.diff(edges.start[order] * (int(edges.span.max()) + 1) + edges.span[order], prepend=-1))
    size = np.diff(group, append=len(edges))
    rates = max(1.0, float(edges.score.std())) / np.maximum(edges.rows.std(axis=1), 1e-9)
    weights = [edges.score + rates * guess @ edges.rows for guess in GUESSES]
    weights += [row.astype(float) for row in edges.rows]
    chosen = np.zeros(len(edges), dtype=bool)
    for weight in weights:
        ordered = weight[order]
        chosen[order[ordered == np.repeat(np.minimum.reduceat(ordered, group), size)]] = True
    return chosen


@functools.cache
def _highs() -> Any:
    """highspy, after it has printed its banner to nowhere."""
    import highspy

    library: Any = highspy
    with quiet_stdout():
        model = library.Highs()
        model.setOptionValue("output_flag", False)
        model.setOptionValue("threads", 1)
        model.addVar(0.0, 1.0)
        model.run()
    return library


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send file descriptor 1 to nowhere meanwhile: HiGHS prints a banner there once a process, whatever it is told."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
