"""Rows: every restriction on the totals as `coefficients · x <= most`, in integers, limits and differences alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from inlay.solver._checks import MAX_TOTAL
from inlay.solver._problem import Problem


@dataclass(frozen=True)
class Rows:
    """`coefficients` [m, N], `most` [m], int64; `names` and `sides` say which limit a row is, "" for a difference."""

    coefficients: np.ndarray
    most: np.ndarray
    names: tuple[str, ...]
    sides: tuple[str, ...]

    def with_difference(self, problem: Problem, picks: np.ndarray, min_layers: int) -> Rows:
        """One row more: at least `min_layers` layers are filled otherwise than in `picks`."""
        return Rows(
            np.vstack([self.coefficients, agreement(problem, picks)]),
            np.append(self.most, problem.table.num_layers - min_layers),
            (*self.names, ""),
            (*self.sides, ""),
        )

    def only(self, which: list[int]) -> Rows:
        """Some of the rows."""
        names, sides = ([texts[k] for k in which] for texts in (self.names, self.sides))
        return Rows(self.coefficients[which], self.most[which], tuple(names), tuple(sides))

    def at(self, most: np.ndarray) -> Rows:
        """The same rows with other right-hand sides."""
        return replace(self, most=most)

    def limit(self, problem: Problem, k: int, row_total: int) -> int:
        """The total of row k's cost, base included, when its left or right-hand side is `row_total`."""
        base = problem.base_costs[problem.cost_names.index(self.names[k])]
        return base + (row_total if self.sides[k] == "upper" else -row_total)

    def broken_by(self, picks: np.ndarray) -> np.ndarray:
        """Indices of the rows that the picked choices break, in integers."""
        return np.flatnonzero(self.coefficients[:, picks].sum(axis=1) > self.most)


def limit_rows(problem: Problem) -> Rows:
    """The problem's limits as rows, in the order of its costs; a lower limit is an upper one of the negative."""
    table = problem.table
    rows: list[tuple[np.ndarray, int, str, str]] = []
    for column, (name, base) in enumerate(zip(problem.cost_names, problem.base_costs, strict=True)):
        uppers = [limit.upper for limit in problem.limits if limit.name == name and limit.upper is not None]
        lowers = [limit.lower for limit in problem.limits if limit.name == name and limit.lower is not None]
        if uppers:
            rows.append((table.costs[:, column], _bounded(min(uppers) - base), name, "upper"))
        if lowers:
            rows.append((-table.costs[:, column], _bounded(base - max(lowers)), name, "lower"))
    matrix = np.array([row[0] for row in rows], dtype=np.int64).reshape(len(rows), len(table.score))
    most = np.array([row[1] for row in rows], dtype=np.int64)
    return Rows(matrix, most, tuple(row[2] for row in rows), tuple(row[3] for row in rows))


def agreement(problem: Problem, picks: np.ndarray) -> np.ndarray:
    """How many layers each choice [N] fills just as `picks` does."""
    same = np.zeros(len(problem.table.score), dtype=np.int64)
    same[picks] = problem.table.span[picks]
    return same


def _bounded(value: int) -> int:
    return max(-MAX_TOTAL, min(MAX_TOTAL, value))
