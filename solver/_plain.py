"""The plain program: the whole problem stated in PuLP, for HiGHS or CBC; the cross-check of the exact solver."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from typing import Any

import numpy as np

from inlay.solver._exact import Outcome
from inlay.solver._problem import Problem
from inlay.solver._relax import quiet_stdout
from inlay.solver._rows import Rows

TOLERANCE = 1e-9
"""Feasibility tolerance asked of HiGHS, on rows whose largest coefficient is ROW_SIZE."""

ROW_SIZE = 1024.0

MAX_CUTS = 50
"""So many answers that break a row within tolerance are cut off before the solver gives up."""


class Plain:
    """The problem as one PuLP program; every answer is checked in integers.

    An answer that breaks a row within the back end's tolerance is cut off, all the rest stays, and the program is
    solved again: so the bound stays true.
    """

    def __init__(self, problem: Problem, rows: Rows, backend: str) -> None:
        import pulp

        self._pulp, self._problem, self._backend, self._rows = pulp, problem, backend, rows.coefficients
        table = problem.table
        self._program = program = pulp.LpProblem("inlay", pulp.LpMinimize)
        self._variables = [program.add_variable(f"x{i}", cat="Binary") for i in range(len(table.score))]
        covers: list[list[Any]] = [[] for _ in problem.layers]
        for variable, start, span in zip(self._variables, table.layer.tolist(), table.span.tolist(), strict=True):
            for layer in range(start, start + span):
                covers[layer].append(variable)
        for cover in covers:
            program += pulp.lpSum(cover) == 1
        terms = list(zip(self._variables, table.score.tolist(), strict=True)) + self._pair_terms()
        program.setObjective(pulp.LpAffineExpression([(variable, score) for variable, score in terms if score]))
        self._limits: list[Any] = []
        for coefficients in rows.coefficients:
            self._state(coefficients)

    def add_row(self, coefficients: np.ndarray) -> None:
        """One more row over the table's choices."""
        self._rows = np.vstack([self._rows, coefficients])
        self._state(coefficients)

    def minimise(self, most: np.ndarray, *, gap: float, deadline: float, at_least: float) -> Outcome:
        """The best picks with rows at most `most`, as far as the back end proves it by `deadline` on its own."""
        del at_least  # the cross-check takes nobody's word
        nothing = np.zeros(0)
        for (limit, scale), value in zip(self._limits, most.tolist(), strict=True):
            limit.changeRHS(value / scale)
        bound: int | None = None
        for _ in range(MAX_CUTS):
            status, picks, found = self._run(gap, deadline)
            bound = found if bound is None or found is None else max(bound, found)
            if picks is None:
                return Outcome(None, bound, status == -1, nothing)
            if (self._rows[:, picks].sum(axis=1) <= most).all():
                return Outcome(picks, bound, status == 1, nothing)
            self._program += self._pulp.lpSum(self._variables[i] for i in picks) <= len(picks) - 1
        return Outcome(None, bound, False, nothing)

    def _pair_terms(self) -> list[tuple[Any, int]]:
        first, terms = self._problem.table.first, []
        for k, pair in enumerate(self._problem.pairs):
            both = self._program.add_variable(f"y{k}", lowBound=0, upBound=1)
            one, other = (self._variables[int(first[layer]) + index] for layer, index in (pair.first, pair.second))
            self._program += both <= one
            self._program += both <= other
            self._program += both >= one + other - 1
            terms.append((both, int(pair.score)))
        return terms

    def _state(self, coefficients: np.ndarray) -> None:
        scale = float(max(1, int(np.abs(coefficients).max(initial=0)))) / ROW_SIZE
        terms = [(self._variables[i], float(coefficients[i]) / scale) for i in np.flatnonzero(coefficients).tolist()]
        limit = self._pulp.LpAffineExpression(terms) <= 0
        self._program += limit
        self._limits.append((limit, scale))

    def _run(self, gap: float, deadline: float) -> tuple[int, np.ndarray | None, int | None]:
        seconds = max(0.01, deadline - time.monotonic())
        status, bound = (_run_highs if self._backend == "highs" else _run_cbc)(self._program, gap, seconds)
        if status not in (1, 2):
            return status, None, bound
        values = np.array([variable.varValue or 0.0 for variable in self._variables])
        picks = np.flatnonzero(np.rint(values) == 1)
        covered = int(self._problem.table.span[picks].sum()) == len(self._problem.layers)
        return (status, picks, bound) if covered else (0, None, bound)


def _run_highs(program: Any, gap: float, seconds: float) -> tuple[int, int | None]:
    import pulp

    tolerances = {"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE}
    solver = pulp.HiGHS(msg=False, gapRel=gap, gapAbs=0, timeLimit=seconds, threads=1, random_seed=0, **tolerances)
    with quiet_stdout():
        program.solve(solver)
    status, bound = int(program.sol_status), float(program.solverModel.getInfo().mip_dual_bound)
    # Before the first bound HiGHS says 0.0.
    known = math.isfinite(bound) and status != -1 and (status != 0 or bound != 0.0)
    return status, _ceil(bound) if known else None


def _run_cbc(program: Any, gap: float, seconds: float) -> tuple[int, int | None]:
    import pulp

    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "cbc.log")
        options = ["primalTolerance 1e-9", "integerTolerance 1e-9", "randomSeed 1"]
        program.solve(
            pulp.PULP_CBC_CMD(
                msg=False, gapRel=gap, gapAbs=0, timeLimit=seconds, threads=1, logPath=log, options=options
            )
        )
        with open(log, encoding="utf-8", errors="replace") as file:
            bounds = re.findall(r"(?:Lower bound|best possible)[: ]+(-?[\d.e+]+)", file.read())
    status = int(program.sol_status)
    if status == 1 and gap == 0:
        return status, round(pulp.value(program.objective))
    return status, _ceil(float(bounds[-1])) if bounds and abs(float(bounds[-1])) < 1e40 else None


def _ceil(bound: float) -> int:
    """The least integer objective that a back end's bound allows, its rounding forgiven."""
    return math.ceil(bound - max(1e-3, 1e-12 * abs(bound)))
