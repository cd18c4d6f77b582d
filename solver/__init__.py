"""Choices in, solutions out: exact integer programs over layers and their choices."""

from __future__ import annotations

from inlay.solver._baselines import METHODS, baseline
from inlay.solver._checks import MAX_CHOICES, MAX_TOTAL, ProblemError
from inlay.solver._front import Axis, FrontPoint, front
from inlay.solver._infeasible import Infeasibility, Nearest, explain_infeasible
from inlay.solver._parts import Choice, Limit, PairTerm
from inlay.solver._problem import Problem, Solution
from inlay.solver._scenarios import Candidate, Decision, decide, stack_scenarios
from inlay.solver._sensitivity import Change, LayerChange, Sensitivity, sensitivity
from inlay.solver._solve import BACKENDS, solve

__all__ = [
    "BACKENDS",
    "MAX_CHOICES",
    "MAX_TOTAL",
    "METHODS",
    "Axis",
    "Candidate",
    "Change",
    "Choice",
    "Decision",
    "FrontPoint",
    "Infeasibility",
    "LayerChange",
    "Limit",
    "Nearest",
    "PairTerm",
    "Problem",
    "ProblemError",
    "Sensitivity",
    "Solution",
    "baseline",
    "decide",
    "explain_infeasible",
    "front",
    "sensitivity",
    "solve",
    "stack_scenarios",
]
