"""The exact solver against every architecture tried one by one, on thousands of small random problems."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inlay.solver import Problem, solve

many = examples(2)
some = examples(0.6)


def check_best(problem: Problem, feasible) -> None:
    found = solve(problem)
    assert len(found) == 1
    best = found[0]
    if not feasible:
        assert best.status == "infeasible"
        return
    assert best.status == "optimal"
    assert best.objective == best.bound == feasible[0][0]
    assert (best.objective, best.totals, best.choices) in feasible


@many
@given(data=st.data())
def test_single_layers(data, problems, architectures):
    problem = data.draw(problems())
    check_best(problem, architectures(problem))


@many
@given(data=st.data())
def test_lower_limits(data, problems, architectures):
    problem = data.draw(problems(lower=True))
    check_best(problem, architectures(problem))


@many
@given(data=st.data())
def test_choices_of_several_layers(data, problems, architectures):
    problem = data.draw(problems(spans=True, lower=True))
    check_best(problem, architectures(problem))


@many
@given(data=st.data())
def test_pair_terms(data, problems, architectures):
    problem = data.draw(problems(pairs=True))
    check_best(problem, architectures(problem))


@many
@given(data=st.data())
def test_all_at_once(data, problems, architectures):
    problem = data.draw(problems(pairs=True, spans=True, lower=True))
    check_best(problem, architectures(problem))


@some
@given(data=st.data())
def test_pools(data, problems, architectures, differs):
    problem = data.draw(problems(pairs=data.draw(st.booleans()), spans=data.draw(st.booleans())))
    share = data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    feasible = architectures(problem)
    pool = solve(problem, solutions=4, min_difference=share)
    if not feasible:
        assert [solution.status for solution in pool] == ["infeasible"]
        return
    earlier: list[list[object]] = []
    for solution in pool:
        left = [one for one in feasible if all(differs(problem, one[2], other, share) for other in earlier)]
        assert solution.status == "optimal"
        assert solution.objective == left[0][0]
        assert (solution.objective, solution.totals, solution.choices) in left
        earlier.append(solution.choices)
    if len(pool) < 4:
        assert not [one for one in feasible if all(differs(problem, one[2], other, share) for other in earlier)]
