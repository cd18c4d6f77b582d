"""A problem with alternatives, one of which is decided for the whole model, against every architecture of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inlay.solver import (
    Axis,
    Candidate,
    Choice,
    Limit,
    Problem,
    ProblemError,
    baseline,
    decide,
    explain_infeasible,
    front,
    sensitivity,
    solve,
)

some = examples(0.6)


def with_others(draw: st.DrawFn, problem: Problem, number: int) -> Problem:
    """The problem beside others of the same choices at drawn scores and costs, whose labels say whose they are."""
    others = []
    for other in range(number):
        layers = tuple(
            tuple(
                replace(
                    choice,
                    label=f"{choice.label} of {other}",
                    score=choice.score + draw(st.integers(0, 5)),
                    costs=tuple(cost + draw(st.integers(0, 5)) for cost in choice.costs),
                )
                for choice in layer
            )
            for layer in problem.layers
        )
        others.append(replace(problem, layers=layers))
    return replace(problem, others=tuple(others))


@some
@given(data=st.data())
def test_a_pool_is_the_best_of_all_alternatives(data, problems, architectures, differs):
    problem = with_others(data.draw, data.draw(problems(spans=data.draw(st.booleans()), lower=True)), 2)
    feasible = sorted((one for each in problem.alternatives for one in architectures(each)), key=lambda one: one[0])
    pool = solve(problem, solutions=4, min_difference=0.5)
    if not feasible:
        assert [solution.status for solution in pool] == ["infeasible"]
        return
    earlier: list[object] = []
    for solution in pool:
        left = [one for one in feasible if all(differs(problem, one[2], other, 0.5) for other in earlier)]
        assert solution.status == "optimal"
        assert solution.objective == solution.bound == left[0][0]
        assert (solution.objective, solution.totals, solution.choices) in left
        earlier.append(solution.choices)
    if len(pool) < 4:
        assert not [one for one in feasible if all(differs(problem, one[2], other, 0.5) for other in earlier)]


@some
@given(data=st.data())
def test_the_plain_program_agrees(data, problems):
    problem = with_others(data.draw, data.draw(problems()), 1)
    exact, plain = (solve(problem, backend=backend)[0] for backend in ("auto", "highs"))
    assert exact.objective == plain.objective


def two(limit: int) -> Problem:
    """Two layers: cheap and bad or dear and good; the other alternative costs half, and 3 of score more."""
    layers = tuple((Choice(f"{i} good", 0, (10,)), Choice(f"{i} bad", 8, (4,))) for i in range(2))
    half = tuple((Choice(f"{i} good", 0, (5,)), Choice(f"{i} bad", 8, (2,))) for i in range(2))
    dearer = tuple(replace(choice, label=f"{choice.label} half", score=choice.score + 3) for choice in half[1])
    other = Problem(("bytes",), (half[0], dearer))
    return Problem(("bytes",), layers, others=(other,)).with_limits(Limit("bytes", upper=limit))


def test_it_changes_to_the_other_where_a_limit_binds_and_back():
    found = {limit: solve(two(limit))[0] for limit in (20, 19, 10, 9, 4)}
    assert {limit: one.labels for limit, one in found.items()} == {
        20: ("0 good", "1 good"),
        19: ("0 good", "1 good half"),
        10: ("0 good", "1 good half"),
        9: ("0 good", "1 bad half"),
        4: ("0 bad", "1 bad half"),
    }
    assert [one.objective for one in found.values()] == [0, 3, 3, 11, 19]
    assert all(one.status == "optimal" for one in found.values())


def test_a_front_goes_through_both():
    points = front(two(20), [Axis("bytes", points=5)], gap=0.0)
    assert [point.limits["bytes"] for point in points] == [4, 8, 12, 16, 20]
    assert [point.solution.objective for point in points] == [19, 11, 3, 3, 0]
    assert [point.solution.totals["bytes"] for point in points] == [4, 7, 10, 10, 20]


def test_what_cannot_be_met_is_told_of_the_nearest():
    told = explain_infeasible(two(3))
    assert told is not None
    assert (told.nearest[0].alone, told.cheapest) == (4, {"bytes": 4})
    assert told.together is not None
    assert told.together.labels == ("0 bad", "1 bad half")
    assert explain_infeasible(two(4)) is None


def test_moving_a_limit_changes_to_the_other():
    (told,) = sensitivity(two(20), steps={"bytes": 1})
    assert told.tighter is not None
    assert (told.tighter.limit, told.tighter.gain) == (19, -3)
    assert [(change.layer, change.after) for change in told.tighter.layers] == [(1, "1 good half")]


def test_simple_rules_and_decisions_take_the_best_of_both():
    assert baseline(two(10), "greedy").labels == ("0 good", "1 good half")
    decided = decide([Candidate("wide", two(20)), Candidate("narrow", two(10))])
    assert (decided.name, decided.solution.objective) == ("wide", 0)
    assert {name: int(bound or 0) for name, bound in decided.bounds.items()}["wide"] == 0


def test_alternatives_of_other_choices_are_refused():
    problem, other = two(20), Problem(("bytes",), ((Choice("a", 0, (1,)),), (Choice("b", 0, (1,)),)))
    with pytest.raises(ProblemError, match=r"`others\[0\]` has other costs, or choices that start or end elsewhere"):
        replace(problem, others=(other,))


def test_each_alternative_is_changed_alike():
    problem = two(20).each(lambda one: replace(one, cost_names=("size",), limits=(Limit("size", upper=10),)))
    assert [one.cost_names for one in problem.alternatives] == [("size",), ("size",)]
    assert solve(problem)[0].labels == ("0 good", "1 good half")
