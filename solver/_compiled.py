"""The inner loops of the deep search, compiled by numba when first called and kept on disk where that is allowed.

Everything that may end a path is a *budget*: a plane's distance to the target, the room left under a row. An edge takes
from each budget a share that is never negative, so a path dies when one is below zero. Budgets and shares are 32-bit
integers, shares rounded down and budgets up, so that rounding never ends a path: one subtraction of a few vector
registers and one look at the signs tests an edge against all planes and rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

TOP = 1 << 28
"""The largest budget that is held exactly."""

PLENTY = (1 << 29) - 1
"""Larger budgets and shares are cut to this; the difference of two never overflows."""

CHUNK = 20
"""Terms of a plane's sum that are added in one pass: there are at least so many, and a multiple of four."""

LANES = 32
"""Planes of a band, whose budgets are computed side by side."""

BINS = 2048
"""Fine steps of a row in which the cells of tables are looked up."""

ROUNDING = 64
"""More than a budget up to TOP is off when it is computed in single precision."""

EXHAUSTED, ARRIVED, PAUSED = 0, 1, 2
"""Why `descend` returned: nothing is left, a path is at the end, its tries are used up."""

UNKNOWN = np.iinfo(np.int32).max
"""In a table: nothing that fits in this cell reaches the end."""

MOST_REFUSALS = 20
"""More than the functions here, each of which may be refused a few times."""


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function` compiled; kept on disk for the next process unless no folder for that can be written."""
    try:
        return cast(Callable[P, T], numba.njit(cache=True, fastmath={"contract"})(function))
    except RuntimeError:
        return cast(Callable[P, T], numba.njit(fastmath={"contract"})(function))


def called(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns. Compiled code that the disk refuses to keep is in memory by then."""
    refusals = 0
    while True:
        try:
            return function(*args, **kwargs)
        except OSError:
            refusals += 1
            if refusals > MOST_REFUSALS:
                raise


@compiled
def four(values: np.ndarray, block: np.ndarray, r: int, lane: int) -> float:
    """Four terms of the sum of a lane, added in pairs."""
    low = values[r] * block[r, lane] + values[r + 1] * block[r + 1, lane]
    high = values[r + 2] * block[r + 2, lane] + values[r + 3] * block[r + 3, lane]
    total: float = low + high
    return total


@compiled
def weigh(values: np.ndarray, block: np.ndarray, sums: np.ndarray) -> bool:
    """Fill `sums` [LANES] with the products of a `block` [r, LANES] with `values` [r]; whether any is above 0.

    Most terms are added in one pass, which the compiler then keeps in registers.
    """
    above = np.int32(0)
    for lane in range(LANES):
        total = four(values, block, 0, lane) + four(values, block, 4, lane)
        total += four(values, block, 8, lane) + four(values, block, 12, lane)
        total += four(values, block, 16, lane)
        sums[lane] = total
        above = np.int32(above | (total > 0))
    for r in range(CHUNK, len(values), 4):
        above = np.int32(0)
        for lane in range(LANES):
            total = sums[lane] + four(values, block, r, lane)
            sums[lane] = total
            above = np.int32(above | (total > 0))
    return bool(above != 0)


@compiled
def enter(values: np.ndarray, block: np.ndarray, scale: np.ndarray, sums: np.ndarray, budget: np.ndarray) -> bool:
    """Fill `budget` [LANES] with the distances of a `block` [r, LANES] of planes to their limits; False if one is dead.

    `values` [r] start with a 1, for the constants of planes; `sums` [LANES] is scratch.
    """
    if weigh(values, block, sums):
        return False
    for lane in range(LANES):
        budget[lane] = np.int32(min(-sums[lane] * scale[lane], np.float32(TOP))) + np.int32(ROUNDING)
    return True


@compiled
def descend(
    first: np.ndarray,
    share: np.ndarray,
    values: np.ndarray,
    budget: np.ndarray,
    cursor: np.ndarray,
    counters: np.ndarray,
    tries: int,
    band: np.ndarray,
    entered: np.ndarray,
    centre: np.ndarray,
    blocks: np.ndarray,
    scale: np.ndarray,
    table: np.ndarray,
    tables: np.ndarray,
    cells: np.ndarray,
    bins: np.ndarray,
    sizes: np.ndarray,
    rows: np.ndarray,
    priced: int,
) -> int:
    """Go on with a depth-first search of a line of nodes until it is exhausted, at the end, or `tries` edges later.

    The path so far: depth `counters[0]`, next edge `cursor[d]` and `budget[d]` [D] at each node d; `counters[1]` tries
    and `counters[2]` states. Edges of node d are `first[d]:first[d + 1]`, with `share` [E, D] and `values` [E, r].
    Where a `band` of nodes starts (its index, else -1), the budgets of its planes (`blocks` [b, r + 1, LANES], over the
    distances from `centre` [b, r]) are computed from the state itself, kept in `entered` [b, r]. Where there is a
    `table` (its index, else -1), the least share of the budget `priced` of any way to the end that fits the room in
    three `rows` is looked up.
    """
    end = len(first) - 1
    depth, tried, states = counters[0], counters[1], counters[2]
    stop = tried + tries
    code = EXHAUSTED
    away, sums = np.zeros(blocks.shape[1], np.float32), np.empty(LANES, np.float32)
    away[0] = 1
    while depth >= 0:
        edge = cursor[depth]
        if edge >= first[depth + 1] or share[edge, 0] > budget[depth, 0]:
            depth -= 1  # the edges are sorted by the first share
            if tried > stop:
                code = PAUSED
                break
            continue
        cursor[depth] = edge + 1
        tried += 1
        signs = np.int32(0)
        for k in range(budget.shape[1]):
            left = np.int32(budget[depth, k] - share[edge, k])
            budget[depth + 1, k] = left
            signs = np.int32(signs | left)
        if signs < 0:
            continue
        node = depth + 1
        if node == end:
            code = ARRIVED
            break
        t = table[node]
        if t >= 0:
            cell = 0
            for a in range(3):
                step = min(int(budget[node, rows[a]] * bins[t, a]), BINS - 1)
                cell = cell * sizes[t, a] + cells[t, a, step]
            if tables[t, cell] > budget[node, priced]:
                continue
        b = band[node]
        if b >= 0:
            begin = depth
            while band[begin] < 0:
                begin -= 1
            num_values = entered.shape[1]
            for r in range(num_values):
                entered[b, r] = entered[b - 1, r]
            for d in range(begin, node):
                edge = cursor[d] - 1
                for r in range(num_values):
                    entered[b, r] += values[edge, r]
            for r in range(num_values):
                away[1 + r] = entered[b, r] - centre[b, r]
            if not enter(away, blocks[b], scale[b], sums, budget[node]):
                continue
        states += 1
        depth = node
        cursor[depth] = first[depth]
    counters[0], counters[1], counters[2] = depth, tried, states
    return code


@compiled
def tabulate(
    first: np.ndarray,
    share: np.ndarray,
    rows: np.ndarray,
    priced: int,
    reduced: np.ndarray,
    room: float,
    most_ways: int,
    most_cells: int,
    table: np.ndarray,
    tables: np.ndarray,
    cells: np.ndarray,
    bins: np.ndarray,
    sizes: np.ndarray,
) -> int:
    """List all ways to the end, node by node from there, and tabulate what the best of them takes; how many tables.

    A way takes `share` [E, D] of each budget; those of more than `room` in all of `reduced` [E] are of no interest. A
    table has for each cell of the room in three `rows` the least share of the budget `priced` among the ways that fit
    (cells are of equal numbers of ways, their borders rounded so that it is never too high). Ends at the node where
    the ways are more than `most_ways`.
    """
    weight, more_weight = np.zeros(most_ways, np.int64), np.zeros(most_ways, np.int64)
    taken, more_taken = np.zeros((most_ways, 3), np.int64), np.zeros((most_ways, 3), np.int64)
    spent, more_spent = np.zeros(most_ways), np.zeros(most_ways)
    count = np.zeros(BINS, np.int64)
    num_ways, t = 1, 0
    for node in range(len(first) - 2, 0, -1):
        n = 0
        for edge in range(first[node], first[node + 1]):
            for i in range(num_ways):
                if spent[i] + reduced[edge] > room:
                    continue
                if n == most_ways:
                    return t
                more_weight[n] = min(weight[i] + share[edge, priced], PLENTY)
                for a in range(3):
                    more_taken[n, a] = min(taken[i, a] + share[edge, rows[a]], PLENTY)
                more_spent[n] = spent[i] + reduced[edge]
                n += 1
        if n == 0 or t == len(tables):
            return t
        num_ways = n
        weight, more_weight = more_weight, weight
        taken, more_taken = more_taken, taken
        spent, more_spent = more_spent, spent
        if n < most_cells:
            continue
        side = min(int(tables.shape[1] ** (1 / 3)), int((most_cells * n) ** (1 / 3)))
        for a in range(3):
            highest = 1
            for i in range(n):
                highest = max(highest, taken[i, a])
            bins[t, a] = (BINS - 1) / highest
            count[:] = 0
            for i in range(n):
                count[np.int64(taken[i, a] * bins[t, a])] += 1
            cell = passed = 0
            for step in range(BINS):
                if count[step] > 0 and passed * side >= (cell + 1) * n and cell < side - 1:
                    cell += 1
                cells[t, a, step] = cell
                passed += count[step]
            sizes[t, a] = cell + 1
        deep, long, wide = sizes[t, 0], sizes[t, 1], sizes[t, 2]
        least = tables[t]
        least[: deep * long * wide] = UNKNOWN
        for i in range(n):
            cell = 0
            for a in range(3):
                cell = cell * sizes[t, a] + cells[t, a, np.int64(taken[i, a] * bins[t, a])]
            least[cell] = min(least[cell], weight[i])
        for step, length in ((1, wide), (wide, long), (wide * long, deep)):
            for cell in range(step, deep * long * wide):
                if (cell // step) % length > 0:
                    least[cell] = min(least[cell], least[cell - step])
        table[node] = t
        t += 1
    return t
