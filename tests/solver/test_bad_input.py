"""What a malformed problem is told: the layer, choice or limit, the value, and the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inlay.solver import (
    Axis,
    Candidate,
    Choice,
    Limit,
    PairTerm,
    Problem,
    ProblemError,
    decide,
    front,
    solve,
    stack_scenarios,
)

A, B = Choice("a", 1, (1,)), Choice("b", 2, (0,))
WIDE = Choice("w", 1, (1,), 2)
GOOD = Problem(("cost",), ((A, B), (A, B)))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), "the problem has no layers; give at least one layer with one choice"),
        (((A,), ()), "layer 1 has no choices; every layer needs at least one"),
        (((A, A),), "layer 0 has the choice `a` twice; give each choice of a layer its own label"),
        (((A, Choice("n", float("nan"), (1,))),), "layer 0, choice `n`: `score` is nan; it has to be a whole number"),
        (((A,), (Choice("i", float("inf"), (1,)),)), "layer 1, choice `i`: `score` is inf; it has to be"),
        (((Choice("f", 1, (0.5,)),),), "layer 0, choice `f`: `cost` is 0.5; it has to be a whole number"),
        (((Choice("t", "1", (1,)),),), "layer 0, choice `t`: `score` is '1'; it has to be a whole number"),
        (((Choice("m", 1, (-3,)),),), "layer 0, choice `m`: the cost `cost` is -3; costs are at least 0"),
        (((Choice("x", 1, ()),),), "layer 0, choice `x`: 0 costs for 1 cost names"),
        (((Choice("h", 2**64, (1,)),),), "layer 0, choice `h`: `score` is 18446744073709551616, too large"),
        (((Choice("l", -(2**63), (1,)),),), "layer 0, choice `l`: `score` is -9223372036854775808, too large"),
        (((A,), (A, Choice("h", 1, (2**52,)))), "layer 1, choice `h`: `cost` is 4503599627370496, too large to add up"),
        (((A,), (WIDE,)), "layer 1, choice `w`: it covers 2 layers, but 1 are left from there"),
        (((Choice("z", 1, (1,), 0),),), "layer 0, choice `z`: it covers 0 layers"),
        (((WIDE,), (WIDE,), ()), "no sequence of choices covers each layer exactly once"),
    ],
)
def test_layers(layers, said):
    with pytest.raises(ProblemError) as caught:
        Problem(("cost",), layers)
    assert str(caught.value).startswith(said)


def test_layers_may_be_empty_where_a_wide_choice_covers_them():
    assert solve(Problem(("cost",), ((WIDE,), (), (A,))))[0].labels == ("w", "w", "a")


def test_more_than_a_million_choices():
    layers = (tuple(Choice(str(k), 0) for k in range(1001)),) * 1000
    with pytest.raises(ProblemError, match="the problem has 1,001,000 choices; at most 1,000,000 can be solved"):
        Problem((), layers)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ([Limit("csot", upper=1)], "the limit `csot` is on no cost of the problem (did you mean `cost`?)"),
        ([Limit("cost", upper=1.5)], "the upper limit on `cost` is 1.5; limits are whole numbers"),
        ([Limit("cost", lower=float("nan"))], "the lower limit on `cost` is nan; limits are whole numbers"),
        ([Limit("cost", upper=1, lower=2)], "the limits on `cost` contradict each other: at least 2 and at most 1"),
        ([Limit("cost", upper=1), Limit("cost", lower=2)], "the limits on `cost` contradict each other"),
    ],
)
def test_limits(limits, said):
    with pytest.raises(ProblemError) as caught:
        GOOD.with_limits(*limits)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cost_names": ("cost", "cost")}, "the cost `cost` is listed twice in `cost_names`"),
        ({"base_costs": (1, 2)}, "`base_costs` has 2 values for 1 costs"),
        ({"base_costs": (-1,)}, "`base_costs` of `cost` is -1; costs are whole numbers of at least 0"),
        ({"pairs": (PairTerm((0, 0), (2, 0), 1),)}, "the pair term names choice 0 of layer 2, which does not exist"),
        ({"pairs": (PairTerm((0, 0), (1, 5), 1),)}, "the pair term names choice 5 of layer 1, which does not exist"),
        ({"pairs": (PairTerm((0, 0), (0, 1), 1),)}, "a pair term joins two choices of layer 0; pairs"),
        ({"pairs": (PairTerm((0, 0), (1, 1), 0.5),)}, "the pair (0, 0), (1, 1) has the score 0.5; give a whole number"),
    ],
)
def test_the_rest_of_a_problem(change, said):
    with pytest.raises(ProblemError) as caught:
        replace(GOOD, **change)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"solutions": 0}, "`solutions` is 0; ask for at least 1"),
        ({"min_difference": 1.5}, "`min_difference` is 1.5; it is a share of the layers, from 0 to 1"),
        ({"min_difference": float("nan")}, "`min_difference` is nan"),
        ({"time_limit": 0}, "`time_limit` is 0 seconds; it must be above 0"),
        ({"gap": -0.1}, "`gap` is -0.1; it is a share of the objective, at least 0"),
        ({"backend": "glpk"}, "`backend` is `glpk`; use one of auto, highs, cbc"),
    ],
)
def test_settings(settings, said):
    with pytest.raises(ProblemError) as caught:
        solve(GOOD, **settings)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([], "0 axes are given; a front is over one limit or two different ones"),
        ([Axis("cost"), Axis("cost")], "2 axes are given"),
        ([Axis("csot")], "the limit `csot` is on no cost of the problem (did you mean `cost`?)"),
        ([Axis("cost", 0)], "the axis `cost` has 0 points; it takes at least 1"),
        ([Axis("cost", 5, 3, 2)], "the axis `cost` goes from 3 to 2; turn it round"),
        ([Axis("cost", 10_001)], "the front would have more than 10000 points; ask for fewer"),
    ],
)
def test_fronts(axes, said):
    with pytest.raises(ProblemError) as caught:
        front(GOOD, axes)
    assert str(caught.value).startswith(said)


def test_scenarios_and_candidates():
    with pytest.raises(ProblemError, match="no scenarios are given"):
        stack_scenarios({})
    with pytest.raises(ProblemError, match="the scenarios `x` and `y` differ in choices, scores or pair terms"):
        stack_scenarios({"x": GOOD, "y": Problem(("cost",), ((A,), (A,)))})
    with pytest.raises(ProblemError, match="give at least one candidate, each with its own name"):
        decide([])
    with pytest.raises(ProblemError, match="the candidate `x` has the amount 0; it is at least 1"):
        decide([Candidate("x", GOOD, 0)])
