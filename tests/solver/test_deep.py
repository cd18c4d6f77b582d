"""The deep search, which takes over where few states dominate others, made to do all the work on small problems."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inlay import solver
from inlay.solver import Choice, Limit, Problem, _deep, _exact
from inlay.solver._plain import Plain
from inlay.solver._rows import limit_rows

PATIENT = 500.0
"""Seconds for what must be solved to its end, however busy the machine: the first search compiles its loops."""
solve = partial(solver.solve, time_limit=PATIENT)
some = examples(0.6)


@pytest.fixture
def runs(monkeypatch):
    """Searches after the first answer are deep from the start, learn every three tries and make tables at once.

    Holds what each run of a search found, and whether that search had been run before.
    """
    monkeypatch.setattr(_exact, "DIFFERENT_BUDGET", -1)
    monkeypatch.setattr(_exact, "DIFFERENT_DIVE_WIDTH", 1)
    monkeypatch.setattr(_deep, "FEWEST_TRIES", 3)
    monkeypatch.setattr(_deep, "UNTIL_TABLES", 1)
    monkeypatch.setattr(_deep, "CELLS_A_WAY", 1)
    run, begun, seen = _deep.Deep.run, set(), []

    def counted(self, *args, **kwargs):
        found = run(self, *args, **kwargs)
        seen.append((found, self in begun))
        begun.add(self)
        return found

    monkeypatch.setattr(_deep.Deep, "run", counted)
    return seen


@some
@given(data=st.data())
def test_pools_are_those_of_brute_force(runs, monkeypatch, data, problems, architectures, differs):
    monkeypatch.setattr(_exact, "MOST_STEPS", data.draw(st.sampled_from([0, 1, 30])))
    problem = data.draw(problems(lower=data.draw(st.booleans()), most_layers=6))
    share = data.draw(st.sampled_from([0.2, 0.5]))
    gap = data.draw(st.sampled_from([0.0, 0.05, 0.5]))
    earlier = []
    for solution in solve(problem, solutions=6, min_difference=share, pool_gap=gap):
        left = [
            one for one in architectures(problem) if all(differs(problem, one[2], other, share) for other in earlier)
        ]
        if not left:
            assert solution.status == "infeasible"
            return
        assert solution.bound <= left[0][0] <= solution.objective
        assert solution.objective - solution.bound <= gap * abs(solution.objective)
        assert solution.status == ("optimal" if solution.objective == solution.bound else "feasible")
        assert (solution.objective, solution.totals, solution.choices) in left
        earlier.append(solution.choices)


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_a_search_that_is_at_its_end_takes_one_row_more(runs, monkeypatch, architectures, differs, steps):
    monkeypatch.setattr(_exact, "MOST_STEPS", steps)
    scores = ((0, 0), (0, 0, 0), (0,), (0, 0, 1), (0, 0, 2))
    layers = tuple(tuple(Choice(f"v{place}", score, ()) for place, score in enumerate(held)) for held in scores)
    problem = Problem(cost_names=(), layers=layers, base_costs=(), limits=())
    earlier = []
    for solution in solve(problem, solutions=6, min_difference=0.5, pool_gap=0.05):
        left = [one for one in architectures(problem) if all(differs(problem, one[2], other, 0.5) for other in earlier)]
        if not left:
            assert solution.status == "infeasible"
            return
        assert solution.bound <= left[0][0] <= solution.objective
        earlier.append(solution.choices)
    assert len(earlier) == 6


@pytest.mark.parametrize("num_limits", [1, 2, *(pytest.param(most, marks=pytest.mark.slow) for most in (3, 5))])
@pytest.mark.parametrize("gap", [0.0, 0.001])
def test_it_finds_what_the_other_search_finds(runs, monkeypatch, num_limits, gap):
    problem = random_problem(num_layers=14 if num_limits > 1 else 30, num_choices=8, num_limits=num_limits)
    pool = solve(problem, solutions=8, pool_gap=gap)
    assert len(pool) == 8
    assert len(runs) >= 3
    assert sum(found.states for found, _ in runs) > 500
    monkeypatch.setattr(_exact, "DIFFERENT_BUDGET", 10**9)
    num_runs = len(runs)
    earlier = solve(problem, solutions=8)
    assert len(runs) == num_runs
    if gap == 0:
        assert [one.choices for one in pool] == [one.choices for one in earlier]
        assert {one.status for one in pool} == {"optimal"}
    for k, one in enumerate(pool[1:], start=1):
        assert one.objective - one.bound <= gap * one.objective
        assert one.bound >= pool[k - 1].bound


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_scores_around_zero(runs, seed):
    problem = random_problem(num_layers=14, num_choices=8, num_limits=3)
    best = solve(problem)[0].objective
    rise = np.random.default_rng(seed).integers(-3, 4) - best
    first = tuple(replace(choice, score=choice.score + int(rise)) for choice in problem.layers[0])
    pool = solve(replace(problem, layers=(first, *problem.layers[1:])), solutions=4, pool_gap=0.01)
    assert pool[0].objective == best + rise
    for one in pool:
        assert one.objective - one.bound <= 0.01 * abs(one.objective)
    assert len(runs) < 200


@pytest.mark.parametrize("spare", [0, 8])
def test_one_search_serves_several_answers(runs, monkeypatch, spare):
    monkeypatch.setattr(_deep, "SPARE_ROWS", spare)
    problem = random_problem(num_layers=14, num_choices=8, num_limits=3)
    pool = solve(problem, solutions=12, pool_gap=0.03)
    assert len({one.choices for one in pool}) == 12
    resumed = [found for found, is_resumed in runs if is_resumed]
    assert sum(found.path is not None for found in resumed) >= spare // 4
    assert len(resumed) > 0 or not spare
    for k, one in enumerate(pool):
        assert one.objective - one.bound <= 0.03 * one.objective
        best = solve(problem, solutions=k + 1)[k] if k < 3 else None
        assert best is None or one.bound <= best.objective
        assert all(sum(a != b for a, b in zip(one.choices, other.choices, strict=True)) >= 3 for other in pool[:k])


def test_what_it_leaves_out_when_time_is_up_is_bounded(runs):
    problem = random_problem(num_layers=40, num_choices=20, num_limits=3)
    best = solve(problem, solutions=2, min_difference=0.2, pool_gap=0.001)
    for limit in (0.2, 0.5, 1.0):
        pool = solve(problem, solutions=2, min_difference=0.2, time_limit=limit)
        assert len(pool) == 2
        assert pool[1].bound <= best[1].objective
        assert pool[1].objective >= best[1].bound


@pytest.mark.parametrize("most_steps", [0, 1])
def test_bounds_of_searches_that_go_on_to_lower_targets(runs, monkeypatch, most_steps):
    monkeypatch.setattr(_exact, "MOST_STEPS", most_steps)
    problem = random_problem(num_layers=12, num_choices=7, num_limits=2, seed=12)
    for gap in (0.02, 0.05, 0.1):
        pool = solve(problem, solutions=8, pool_gap=gap)
        assert any(is_resumed for _, is_resumed in runs)
        for k, one in enumerate(pool[1:], start=1):
            assert one.bound <= best_beside(problem, pool[:k]) <= one.objective


def best_beside(problem: Problem, earlier) -> int:
    """The score of the best that differs from all `earlier` in a fifth of the layers, by the plain program in HiGHS."""
    rows = limit_rows(problem)
    for one in earlier:
        rows = rows.with_difference(problem, problem.table.first[:-1] + np.array(one.choices), 3)
    outcome = Plain(problem, rows, "highs").minimise(rows.most, gap=0.0, deadline=math.inf, at_least=-math.inf)
    assert outcome.picks is not None
    return int(problem.table.score[outcome.picks].sum())


def random_problem(num_layers: int, num_choices: int, num_limits: int, seed: int = 5) -> Problem:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 10**8, (num_layers, num_choices))
    costs = rng.integers(0, 10**9, (num_layers, num_choices, num_limits))
    names = tuple(f"c{k}" for k in range(num_limits))
    middle = (costs.min(axis=1) + 2 * costs.mean(axis=1)).sum(axis=0) // 3
    layers = tuple(
        tuple(Choice(f"v{k}", int(score[layer, k]), tuple(costs[layer, k].tolist())) for k in range(num_choices))
        for layer in range(num_layers)
    )
    limits = tuple(Limit(name, upper=int(most)) for name, most in zip(names, middle, strict=True))
    return Problem(names, layers, (0,) * num_limits, limits)


@pytest.mark.slow
def test_a_disk_that_keeps_nothing_costs_only_the_time_to_compile(tmp_path):
    program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
from inlay.solver import _exact, solve
_exact.DIFFERENT_BUDGET = -1
from test_deep import random_problem
pool = solve(random_problem(num_layers=14, num_choices=8, num_limits=3), solutions=4)
from inlay.solver._compiled import descend
assert descend.signatures
print(*(solution.objective for solution in pool))
"""
    own = Path(__file__).parent
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{own}{os.pathsep}{own.parent}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pool = solve(random_problem(num_layers=14, num_choices=8, num_limits=3), solutions=4)
    assert done.stdout.split() == [str(solution.objective) for solution in pool]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_search_that_is_resumed_may_run_out_of_time(runs, monkeypatch):
    run, begun, stopped = _deep.Deep.run, set(), []

    def late(self, target, *, deadline, **kwargs):
        found = run(self, target, deadline=-math.inf if self in begun else deadline, **kwargs)
        stopped.append(self in begun and found.stopped)
        begun.add(self)
        return found

    monkeypatch.setattr(_deep.Deep, "run", late)
    problem = random_problem(num_layers=14, num_choices=8, num_limits=3)
    pool = solve(problem, solutions=12, pool_gap=0.03)
    assert any(stopped)
    for one in pool:
        assert one.objective - one.bound <= 0.03 * one.objective
    for earlier, later in pairwise(pool):
        assert earlier.bound <= later.bound


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.001])
def test_a_search_goes_on_where_its_budget_ended(runs, monkeypatch, gap):
    problem = random_problem(num_layers=14, num_choices=8, num_limits=3)
    pool = solve(problem, solutions=8, pool_gap=gap)
    monkeypatch.setattr(_exact, "DEEP_BUDGET", 20)
    monkeypatch.setattr(_exact, "DEEP_GROWTH", 2)
    runs.clear()
    again = solve(problem, solutions=8, pool_gap=gap)
    assert sum(is_resumed for _, is_resumed in runs) > 8
    if gap == 0:
        assert [one.choices for one in again] == [one.choices for one in pool]
    for one in again:
        assert one.objective - one.bound <= gap * one.objective


def test_more_answers_than_terms_in_a_pass(runs):
    problem = random_problem(num_layers=14, num_choices=8, num_limits=3)
    pool = solve(problem, solutions=30, pool_gap=0.02)
    assert len(pool) == 30
    assert len(runs) > 10
    for k, one in enumerate(pool):
        assert one.objective - one.bound <= 0.02 * one.objective
        assert all(sum(a != b for a, b in zip(one.choices, other.choices, strict=True)) >= 3 for other in pool[:k])
