"""Fronts, explanations, sensitivity, decisions and baselines against every architecture tried one by one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples

from inlay.solver import (
    METHODS,
    Axis,
    Candidate,
    Choice,
    Limit,
    PairTerm,
    Problem,
    ProblemError,
    baseline,
    decide,
    explain_infeasible,
    front,
    sensitivity,
    solve,
    stack_scenarios,
)

many = examples(2)
some = examples(0.8)
few = examples(0.3)
STEPS = 10_000
"""In how many parts of itself a limit gives way, as explain_infeasible says."""


def any_problem(data, problems, **options) -> Problem:
    """A problem of any feature, but for the `options` given."""
    flags = {name: data.draw(st.booleans()) for name in ("spans", "pairs", "lower")}
    return data.draw(problems(**{**flags, **options}))


@some
@given(data=st.data())
def test_fronts(data, problems, architectures):
    problem = any_problem(data, problems, lower=False)
    assume(problem.cost_names)
    names = data.draw(st.lists(st.sampled_from(problem.cost_names), min_size=1, max_size=2, unique=True))
    points = front(problem, [Axis(name, points=data.draw(st.integers(1, 4))) for name in names], gap=0)
    everything = architectures(problem.with_limits(*(limit for limit in problem.limits if limit.name not in names)))
    if not everything:
        assert {point.solution.status for point in points} == {"infeasible"}
        return
    for name in names:
        swept = {point.limits[name] for point in points}
        assert len(swept) == 1 or min(swept) == min(totals[name] for _, totals, _ in everything)
    for point in points:
        within = [one for one in everything if all(one[1][name] <= value for name, value in point.limits.items())]
        if not within:
            assert point.solution.status == "infeasible"
            continue
        assert point.solution.status == "optimal"
        assert point.solution.objective == within[0][0]
        assert (point.solution.objective, point.solution.totals, point.solution.choices) in within
    for k, point in enumerate(points):
        assert point.dominated == any(beats(other, point, names, j < k) for j, other in enumerate(points) if j != k)


def beats(other, point, names, is_earlier: bool) -> bool:
    """Whether another point makes one superfluous."""
    if other.solution.objective is None or point.solution.objective is None:
        return False
    theirs, mine = (
        (each.solution.objective, *(each.solution.totals[name] for name in names)) for each in (other, point)
    )
    return all(a <= b for a, b in zip(theirs, mine, strict=True)) and (theirs != mine or is_earlier)


def holds(totals, rule) -> bool:
    """Whether totals keep a rule, (name, side, value)."""
    name, side, value = rule
    return totals[name] <= value if side == "upper" else totals[name] >= value


@some
@given(data=st.data())
def test_infeasible_is_explained(data, problems, architectures):
    problem = any_problem(data, problems)
    told = explain_infeasible(problem)
    if architectures(problem):
        assert told is None
        return
    everything = architectures(problem.with_limits())
    rules = [(near.name, near.side, near.asked) for near in told.nearest]
    values = [(each.name, side, getattr(each, side)) for each in problem.limits for side in ("upper", "lower")]
    assert sorted(rules) == sorted(value for value in values if value[2] is not None)
    for rule, near in zip(rules, told.nearest, strict=True):
        nearest = min if near.side == "upper" else max
        assert near.alone == nearest(totals[near.name] for _, totals, _ in everything)
        beside = [t[near.name] for _, t, _ in everything if all(holds(t, other) for other in rules if other != rule)]
        assert near.with_others == (nearest(beside) if beside else None)
    conflict = [(near.name, near.side, near.asked) for near in told.conflict]
    assert not any(all(holds(totals, rule) for rule in conflict) for _, totals, _ in everything)
    for left in conflict:
        rest = [rule for rule in conflict if rule != left]
        assert any(all(holds(totals, rule) for rule in rest) for _, totals, _ in everything)
    assert told.cheapest == {name: min(totals[name] for _, totals, _ in everything) for name, _, _ in rules}
    steps = round(told.loosened * STEPS)
    assert not loosened(told, everything, steps - 1)
    best = loosened(told, everything, steps)
    assert told.together.objective == best[0][0]
    assert told.together.totals in [totals for _, totals, _ in best]


def loosened(told, everything, steps: int):
    """The architectures that hold the limits once each has given way by steps / STEPS of itself."""
    rules = []
    for near in told.nearest:
        way = steps * max(near.asked, near.alone, 1) // STEPS
        rules.append((near.name, near.side, near.asked + (way if near.side == "upper" else -way)))
    return [one for one in everything if all(holds(one[1], rule) for rule in rules)]


@some
@given(data=st.data())
def test_sensitivity(data, problems, architectures):
    problem = any_problem(data, problems)
    best = architectures(problem)
    found = sensitivity(problem, steps=dict.fromkeys(problem.cost_names, data.draw(st.integers(1, 50))))
    if not best:
        assert found == []
        return
    everything = architectures(problem.with_limits())
    values = [(each.name, side, getattr(each, side)) for each in problem.limits for side in ("upper", "lower")]
    rules = [value for value in values if value[2] is not None]
    for each in found:
        others = [rule for rule in rules if rule[:2] != (each.name, each.side)]
        for change, way in ((each.looser, 1), (each.tighter, -1)):
            sign = way if each.side == "upper" else -way
            moved = [each.limit + sign * each.step * 2**k for k in range(8)]
            objectives = []
            for value in moved:
                asked = [*others, (each.name, each.side, value)]
                within = [one[0] for one in everything if all(holds(one[1], rule) for rule in asked)]
                objectives.append(min(within, default=None))
            first = next((k for k, objective in enumerate(objectives) if objective != best[0][0]), None)
            if first is None or objectives[first] is None:
                assert change is None
                continue
            assert change.limit == moved[first]
            assert change.gain == best[0][0] - objectives[first]
            assert (change.gain > 0) == (way > 0)
            assert all(layer.before != layer.after for layer in change.layers)


@some
@given(data=st.data())
def test_decisions(data, problems, architectures):
    candidates = [
        Candidate(f"b{k}", any_problem(data, problems), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 20)))
        for k in range(data.draw(st.integers(1, 4)))
    ]
    best = {
        each.name: Fraction(held[0][0] + each.base_objective, each.amount)
        for each in candidates
        if (held := architectures(each.problem))
    }
    told = decide(candidates)
    if not best:
        assert (told.name, told.solution.status) == (None, "infeasible")
        return
    assert told.solution.status == "optimal"
    assert best[told.name] == min(best.values())
    for name, value in best.items():
        assert told.bounds[name] <= value


@some
@given(data=st.data())
def test_scenarios_at_once(data, problems, architectures):
    first = any_problem(data, problems)
    assume(first.cost_names)
    largest = 1 + max(cost for layer in first.layers for choice in layer for cost in choice.costs)
    layers = tuple(
        tuple(replace(each, costs=tuple(data.draw(st.integers(0, largest)) for _ in each.costs)) for each in layer)
        for layer in first.layers
    )
    limit = Limit(first.cost_names[0], upper=data.draw(st.integers(0, 3 * largest)))
    second = Problem(first.cost_names, layers, first.base_costs, (limit,), first.pairs)
    chat, batch = (
        {choices: objective for objective, _, choices in architectures(problem)} for problem in (first, second)
    )
    (found,) = solve(stack_scenarios({"chat": first, "batch": second}))
    if not chat.keys() & batch.keys():
        assert found.status == "infeasible"
        return
    assert found.objective == min(chat[choices] for choices in chat.keys() & batch.keys())
    assert found.choices in chat.keys() & batch.keys()


@pytest.mark.slow
@few
@given(data=st.data())
def test_baselines_are_what_they_say(data, problems, architectures):
    problem = any_problem(data, problems)
    within = {choices for _, _, choices in architectures(problem)}
    everything = architectures(problem.with_limits())
    (best,) = solve(problem)
    found = {method: baseline(problem, method) for method in METHODS}
    uniform = [one for one in everything if len(set(labels_of(problem, one[2]))) == 1]
    if not uniform:
        none = found.pop("uniform")
        assert (none.status, none.choices, none.objective) == ("infeasible", (), None)
    for answer in found.values():
        assert (answer.objective, answer.totals, answer.choices) in everything
        assert answer.labels == labels_of(problem, answer.choices)
        assert answer.status == ("feasible" if answer.choices in within else "infeasible")
        assert answer.status == "infeasible" or answer.objective >= best.objective
        assert answer.bound is None
    held = [one for one in uniform if one[2] in within]
    if held:
        assert found["uniform"].objective == held[0][0]
    if within and len(everything) <= 20:  # a thousand draws miss none of so few
        assert found["random"].objective == best.objective
    weight = {one[2]: weight_of(problem, one[2]) for one in everything}
    assert weight[found["largest"].choices] == max(weight.values())
    assert weight[found["no_op"].choices] == min(weight.values())


@many
@given(data=st.data())
def test_the_greedy_baseline_ends_where_it_should(data, problems, architectures):
    problem = any_problem(data, problems)
    free = architectures(replace(problem, pairs=(), limits=()))
    within = {choices for _, _, choices in architectures(problem)}
    answer = baseline(problem, "greedy")
    own_score = next(score for score, _, choices in free if choices == answer.choices)
    if all(choices in within for score, _, choices in free if score == free[0][0]):
        assert own_score == free[0][0]
    if answer.status == "infeasible":
        least = excess_of(problem, answer.totals)
        assert least > 0
        for _, totals, other in free:
            changed = sum(one != two for one, two in zip(other, answer.choices, strict=True))
            assert changed != 1 or excess_of(problem, totals) >= least - 1e-9


def test_the_greedy_baseline_opens_a_wide_choice():
    """Two narrow choices cost less than the wide one that has the better score; one of them is a filler."""
    wide = Choice("ab", 1, (10,), 2)
    first = (Choice("a", 3, (4,)), Choice("a small", 9, (1,)), wide)
    problem = Problem(("cost",), (first, (Choice("b", 3, (4,)),)), limits=(Limit("cost", upper=9),))
    assert baseline(problem, "greedy").labels == ("a", "b")
    less = baseline(problem.with_limits(Limit("cost", upper=5)), "greedy")
    assert (less.status, less.labels, less.totals) == ("feasible", ("a small", "b"), {"cost": 5})
    none = baseline(problem.with_limits(Limit("cost", upper=4)), "greedy")
    assert (none.status, none.totals) == ("infeasible", {"cost": 5})


def test_baselines_count_pair_terms():
    layers = tuple((Choice("x", 0), Choice("y", 1)) for _ in range(2))
    problem = Problem((), layers, pairs=(PairTerm((0, 0), (1, 0), 9), PairTerm((0, 1), (1, 1), -1)))
    assert {method: baseline(problem, method).objective for method in ("uniform", "random", "greedy")} == {
        "uniform": 1,
        "random": 1,
        "greedy": 9,
    }


def labels_of(problem: Problem, choices) -> tuple[str, ...]:
    """The label that covers each layer."""
    found: list[str] = []
    for layer, index in enumerate(choices):
        found.append(found[-1] if index < 0 else problem.layers[layer][index].label)
    return tuple(found)


def excess_of(problem: Problem, totals: dict[str, int]) -> float:
    """By how much limits are broken, each in shares of the largest cost of a choice."""
    excess = 0.0
    for k, name in enumerate(problem.cost_names):
        largest = max(1, *(choice.costs[k] for layer in problem.layers for choice in layer))
        uppers = [limit.upper for limit in problem.limits if limit.name == name and limit.upper is not None]
        lowers = [limit.lower for limit in problem.limits if limit.name == name and limit.lower is not None]
        excess += max(0, totals[name] - min(uppers, default=totals[name])) / largest
        excess += max(0, max(lowers, default=totals[name]) - totals[name]) / largest
    return excess


def weight_of(problem: Problem, choices) -> int:
    """All costs together, each in shares (of 2**30) of the largest there is."""
    picked = [problem.layers[layer][index] for layer, index in enumerate(choices) if index >= 0]
    every = [choice for layer in problem.layers for choice in layer]
    largest = [max(1, *(choice.costs[k] for choice in every)) for k in range(len(problem.cost_names))]
    return sum((cost << 30) // most for choice in picked for cost, most in zip(choice.costs, largest, strict=True))


def test_a_baseline_that_is_refused():
    wide = Problem((), ((Choice("a", 1), Choice("ab", 1, (), 2)), (Choice("b", 1),)))
    with pytest.raises(ProblemError, match="`method` is `gredy`; use one of greedy, uniform"):
        baseline(wide, "gredy")
    assert baseline(wide, "uniform").labels == ("ab", "ab")


def test_the_random_baseline_is_the_same_for_a_seed():
    layers = tuple(tuple(Choice(f"v{k}", k * (n + 1), (9 - k,)) for k in range(9)) for n in range(12))
    problem = Problem(("cost",), layers, limits=(Limit("cost", upper=50),))
    one, again, other = (baseline(problem, "random", seed=seed) for seed in (1, 1, 2))
    assert one.choices == again.choices
    assert one.choices != other.choices
