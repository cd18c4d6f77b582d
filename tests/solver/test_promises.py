"""Promises: no order or name changes an answer, back ends agree, bounds are true when time runs out."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inlay.solver import Choice, Limit, PairTerm, Problem, explain_infeasible, solve

many = examples(2)


@pytest.mark.slow
@many
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_order_of_rows_does_not_matter(data, seed, problems):
    problem = data.draw(problems(spans=data.draw(st.booleans()), pairs=data.draw(st.booleans()), lower=True))
    shuffled = random.Random(seed)
    orders = [shuffled.sample(range(len(layer)), len(layer)) for layer in problem.layers]
    layers = tuple(tuple(layer[i] for i in order) for layer, order in zip(problem.layers, orders, strict=True))
    pairs = tuple(
        PairTerm(*((layer, orders[layer].index(index)) for layer, index in (pair.first, pair.second)), pair.score)
        for pair in problem.pairs
    )
    other = Problem(problem.cost_names, layers, problem.base_costs, problem.limits, pairs)
    (one,), (two,) = solve(problem), solve(other)
    assert (one.status, one.objective, one.totals, one.labels) == (two.status, two.objective, two.totals, two.labels)


@pytest.mark.slow
@many
@given(data=st.data())
def test_names_do_not_matter(data, problems):
    problem = data.draw(problems(lower=True))
    layers = tuple(
        tuple(replace(choice, label=f"other {9 - k}") for k, choice in enumerate(layer)) for layer in problem.layers
    )
    (one,), (two,) = solve(problem), solve(replace(problem, layers=layers))
    assert (one.status, one.objective, one.totals) == (two.status, two.objective, two.totals)
    picked, picked_too = (
        [(layer[i].score, layer[i].costs) for layer, i in zip(problem.layers, each.choices, strict=False)]
        for each in (one, two)
    )
    assert picked == picked_too


def test_ties_are_broken_the_same_way_however_the_solver_gets_there():
    layers = tuple(tuple(Choice(f"v{k}", k, (3 - k,)) for k in range(4)) for _ in range(12))
    problem = Problem(("cost",), layers, limits=(Limit("cost", upper=18),))
    mirrored = Problem(("cost",), tuple(layer[::-1] for layer in layers), limits=problem.limits)
    answers = {solve(each, solutions=count)[0].labels for each in (problem, mirrored) for count in (1, 3)}
    assert len(answers) == 1


@pytest.mark.slow
@many
@given(data=st.data())
def test_a_gap_is_kept(data, problems, architectures):
    problem = data.draw(problems(pairs=data.draw(st.booleans()), spans=data.draw(st.booleans())))
    gap = data.draw(st.sampled_from([0.001, 0.1, 0.5]))
    feasible = architectures(problem)
    (found,) = solve(problem, gap=gap)
    if not feasible:
        assert found.status == "infeasible"
        return
    assert found.bound <= feasible[0][0] <= found.objective
    assert found.objective - found.bound <= gap * abs(found.objective) + 1e-9
    assert (found.status == "optimal") == (found.bound == found.objective)


def large(seed: int, *, spans: bool = False, num_pairs: int = 0, lower: bool = False, num_layers: int = 40) -> Problem:
    """A problem beyond trying: convex scores, two costs in proportion with noise."""
    draw = random.Random(seed)
    layers = []
    for n in range(num_layers):
        weight = draw.lognormvariate(0, 0.6) * (8 if n in (0, num_layers - 1) else 1)
        own = []
        for k in range(12):
            share = k / 11
            score = int(1e6 * weight * (1 / (share + 0.15) - 1 / 1.15) * draw.uniform(0.9, 1.1))
            own.append(Choice(f"v{k}", score, (int(1e6 * (share + 0.1) * draw.uniform(0.98, 1.02)), int(1e9 * share))))
        if spans and n % 3 == 0 and n + 1 < num_layers:
            own.append(Choice("two", int(2e6 * weight), (700_000, 10**9), 2))
        layers.append(tuple(own))
    terms = {}
    while len(terms) < num_pairs:
        n = draw.randrange(num_layers - 1)
        first, second = (n, draw.randrange(11)), (min(num_layers - 1, n + draw.randrange(1, 6)), draw.randrange(11))
        terms[first, second] = int(draw.uniform(-0.3, 0.3) * layers[n][first[1]].score)
    limits = [Limit("time", upper=int(0.55e6 * num_layers)), Limit("bytes", upper=int(0.52e9 * num_layers))]
    if lower:
        limits[1] = Limit("bytes", lower=int(0.452e9 * num_layers))
    pairs = tuple(PairTerm(*ends, score) for ends, score in terms.items())
    return Problem(("time", "bytes"), tuple(layers), (1000, 2000), tuple(limits), pairs)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
@pytest.mark.parametrize(
    "options",
    [{}, {"spans": True}, {"num_pairs": 30}, {"lower": True}, {"spans": True, "num_pairs": 20}],
    ids=["plain", "spans", "pairs", "lower", "both"],
)
def test_back_ends_agree_to_the_integer(options, seed):
    problem = large(seed, **options)
    answers = [solve(problem, backend=backend)[0] for backend in ("auto", "highs", "cbc")]
    assert {answer.status for answer in answers} == {"optimal"}
    assert len({answer.objective for answer in answers}) == 1


def test_any_number_of_pair_terms():
    problem = large(7, num_pairs=150, num_layers=30)
    one, other = (solve(problem, backend=backend)[0] for backend in ("auto", "highs"))
    assert one.status == other.status == "optimal"
    assert one.objective == other.objective


def test_pools_agree_with_the_plain_program():
    problem = large(3, num_layers=30)
    one, other = (solve(problem, solutions=4, backend=backend) for backend in ("auto", "highs"))
    assert [each.objective for each in one] == [each.objective for each in other]
    assert {each.status for each in one} == {"optimal"}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_answers_of_large_problems_are_what_they_say(seed):
    """Beyond trying all, with searches, dives and exchanges: every answer is recomputed from its choices."""
    draw = random.Random(seed)
    layers = tuple(
        tuple(Choice(f"v{k}", draw.randrange(10**8), tuple(draw.randrange(10**9) for _ in range(3))) for k in range(30))
        for _ in range(40)
    )
    limits = tuple(Limit(name, upper=10 * 10**9) for name in "abc")
    pool = solve(Problem(("a", "b", "c"), layers, limits=limits), solutions=8, pool_gap=1e-3, time_limit=8.0)
    assert pool[0].status == "optimal"
    for k, found in enumerate(pool):
        assert min(found.choices) >= 0
        taken = [layer[index] for layer, index in zip(layers, found.choices, strict=True)]
        assert found.labels == tuple(choice.label for choice in taken)
        assert found.objective == sum(choice.score for choice in taken)
        assert list(found.totals.values()) == [sum(choice.costs[c] for choice in taken) for c in range(3)]
        assert max(found.totals.values()) <= 10 * 10**9
        assert found.bound <= found.objective
        for earlier in pool[:k]:
            assert sum(a != b for a, b in zip(found.choices, earlier.choices, strict=True)) >= 8
            assert found.objective >= earlier.bound


def hard(num_layers: int = 60) -> Problem:
    """Even costs that scores mirror, under odd limits: no bound of a relaxation is ever met."""
    draw = random.Random(5)
    costs = [[(2 * draw.randrange(10**7), 2 * draw.randrange(10**7)) for _ in range(20)] for _ in range(num_layers)]
    layers = tuple(tuple(Choice(f"v{k}", 4 * 10**7 - a - b, (a, b)) for k, (a, b) in enumerate(own)) for own in costs)
    limits = (Limit("a", upper=10**7 * num_layers + 1), Limit("b", upper=10**7 * num_layers + 1))
    return Problem(("a", "b"), layers, limits=limits)


def unknowable(num_layers: int = 60) -> Problem:
    """Even costs that have to add up to exactly an odd number: nobody can tell quickly that they cannot."""
    draw = random.Random(1)
    layers = tuple(tuple(Choice(f"v{k}", k, (2 * draw.randrange(10**9),)) for k in range(3)) for _ in range(num_layers))
    total = num_layers * 10**9 + 1
    return Problem(("a",), layers, limits=(Limit("a", upper=total, lower=total),))


def test_what_is_not_proven_is_not_called_optimal():
    begin = time.monotonic()
    (found,) = solve(hard(), time_limit=1.0)
    assert time.monotonic() - begin < 10
    assert found.status == "feasible"
    assert found.bound < found.objective
    assert found.gap == (found.objective - found.bound) / found.objective


@pytest.mark.parametrize("backend", ["auto", "highs", "cbc"])
def test_bounds_of_any_time_limit_are_true(backend):
    problem = large(1, num_pairs=10)
    best = solve(problem)[0].objective
    for seconds in (1e-9, 0.02, 0.2):
        (found,) = solve(problem, time_limit=seconds, backend=backend)
        assert found.status != "infeasible"
        assert found.bound is None or found.bound <= best
        assert found.objective is None or found.objective >= best
        assert found.status != "optimal" or found.objective == best


def test_without_any_answer_in_time_the_bound_is_told():
    (found,) = solve(unknowable(), time_limit=0.3)
    assert (found.status, found.objective) == ("unknown", None)
    assert found.bound is not None


def test_an_explanation_that_takes_too_long_says_so():
    with pytest.raises(TimeoutError, match=r"0\.2 seconds did not suffice"):
        explain_infeasible(unknowable(), time_limit=0.2)
