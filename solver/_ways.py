"""The alternatives of a problem side by side, each with its own solver; what they found as one answer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from inlay.solver._describe import describe
from inlay.solver._exact import Outcome
from inlay.solver._problem import Problem, Solution
from inlay.solver._rows import Rows, agreement


class Solver(Protocol):
    """What finds one answer after another under the same rows and those added since."""

    def minimise(self, most: np.ndarray, *, gap: float, deadline: float, at_least: float) -> Outcome:
        """The best picks (table indices) with rows at most `most`; none is below `at_least`."""

    def add_row(self, coefficients: np.ndarray) -> None:
        """One more row over the table's choices."""


@dataclass
class Way:
    """One alternative: its rows and solver, and what was found last; None where that is to be sought anew."""

    problem: Problem
    rows: Rows
    solver: Solver
    outcome: Outcome | None = None
    at_least: float = -math.inf

    def differ(self, picks: np.ndarray, min_layers: int) -> None:
        """Asks for answers that differ from `picks`; what was found before stays the best where it does."""
        held = self.outcome
        if held is not None and held.bound is not None:
            # What comes is held to more than this one was.
            self.at_least = held.bound
        self.rows = self.rows.with_difference(self.problem, picks, min_layers)
        self.solver.add_row(agreement(self.problem, picks))
        if held is None or (not held.proven if held.picks is None else len(self.rows.broken_by(held.picks)) > 0):
            self.outcome = None


def look(ways: Sequence[Way], gap: float, deadline: float) -> tuple[Solution, np.ndarray | None]:
    """The best answer of all ways, proven against all of them, and its picks; without one `infeasible` or `unknown`.

    `deadline` is one of `time.monotonic`; each way that has to be sought anew gets an equal share of what is left.
    """
    begin = time.monotonic()
    new = [way for way in ways if way.outcome is None]
    for number, way in enumerate(new):
        now = time.monotonic()
        end = now + max(0.0, deadline - now) / (len(new) - number)
        way.outcome = way.solver.minimise(way.rows.most, gap=gap, deadline=end, at_least=way.at_least)
    return best_of([(way.problem, way.rows, way.outcome) for way in ways if way.outcome], time.monotonic() - begin)


def best_of(found: Sequence[tuple[Problem, Rows, Outcome]], seconds: float) -> tuple[Solution, np.ndarray | None]:
    """The best of what was found of every alternative, the first among equals, and its picks.

    It is optimal where no alternative has anything lower; what is known to have no answer counts for nothing.
    """
    open_ = [outcome.bound for _, _, outcome in found if outcome.picks is not None or not outcome.proven]
    known = [bound for bound in open_ if bound is not None]
    bound = min(known) if len(known) == len(open_) and known else None
    answers = [(describe(*each, seconds), each[2].picks) for each in found if each[2].picks is not None]
    if not answers:
        return Solution("unknown" if open_ else "infeasible", bound=bound, seconds=seconds), None
    best, picks = min(answers, key=lambda each: each[0].objective or 0)
    objective = best.objective
    assert objective is not None
    bound = None if bound is None else min(bound, objective)
    gap = None if bound is None else (objective - bound) / max(1, abs(objective))
    status = "optimal" if bound == objective else "feasible"
    return replace(best, status=status, bound=bound, gap=gap), picks
