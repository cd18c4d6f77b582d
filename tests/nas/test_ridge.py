"""Factors on the terms of a sum, and what they make of scores and problems."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.nas.loop.probes import shares, weighted, with_most_kl
from inlay.nas.loop.ridge import fit_factors
from inlay.nas.tables.architecture import PARENT_BLOCK, kind_of
from inlay.nas.tables.problem import NANO
from inlay.nas.tables.scores import Gammas, ScoreTable
from inlay.solver import Choice, Limit, Problem, solve

ATTENTION, FFN = PARENT_BLOCK
SCORES = ScoreTable(
    {
        layer: {
            ("attention:linear", FFN): 0.3,
            (ATTENTION, "ffn:width=8"): 0.1 * (layer + 1),
            ("attention:linear", "ffn:width=8"): 0.5,
        }
        for layer in range(3)
    },
    Gammas(0.75),
)


def test_right_predictions_need_no_factors() -> None:
    found = fit_factors([{"a": 1.0, "b": 2.0}, {"a": 3.0}], [3.0, 3.0], 0.1, 0.05)
    assert found == pytest.approx({"a": 1.0, "b": 1.0})


@settings(max_examples=50, deadline=None)
@given(
    factors=st.lists(st.floats(0.3, 2.0), min_size=3, max_size=3),
    amounts=st.lists(st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3), min_size=6, max_size=8),
)
def test_a_fit_is_nearer_to_the_truth_than_no_factors(factors: list[float], amounts: list[list[float]]) -> None:
    terms = [dict(zip("abc", row, strict=True)) for row in amounts]
    true = [sum(f * a for f, a in zip(factors, row, strict=True)) for row in amounts]
    found = fit_factors(terms, true, 1e-3, 0.0)

    def error(held: dict[str, float]) -> float:
        return sum((1 - sum(held[n] * v for n, v in t.items()) / y) ** 2 for t, y in zip(terms, true, strict=True))

    assert error(found) <= error(dict.fromkeys("abc", 1.0)) + 1e-12


def test_factors_have_a_floor_and_nothing_gives_none() -> None:
    assert fit_factors([{"a": 1.0}], [0.01], 1e-6, 0.2) == {"a": 0.2}
    assert fit_factors([{}], [1.0], 0.1, 0.05) == {}


def test_a_block_is_shared_in_proportion_to_what_its_variants_cost_alone() -> None:
    assert shares(SCORES, 2, ("attention:linear", "ffn:width=8")) == pytest.approx(
        {"attention:linear": 0.5, "ffn:width=8": 0.5}
    )
    assert shares(SCORES, 0, ("attention:linear", "ffn:width=8")) == pytest.approx(
        {"attention:linear": 0.75, "ffn:width=8": 0.25}
    )
    assert shares(SCORES, 0, (ATTENTION, "ffn:width=8")) == {"ffn:width=8": 1.0}


def test_weights_scale_single_and_joint_scores() -> None:
    dearer = weighted(SCORES, lambda label: 4.0 if kind_of(label) == "attention:linear" else 1.0)
    assert dearer.score(1, ("attention:linear", FFN)) == pytest.approx(1.2)
    assert dearer.score(1, (ATTENTION, "ffn:width=8")) == pytest.approx(0.2)
    joint = 0.5 * (4 * 0.3 + 0.2) / 0.5
    assert dearer.score(1, ("attention:linear", "ffn:width=8")) == pytest.approx(joint)
    assert dearer.score(1, PARENT_BLOCK) == 0


def test_the_kl_before_is_a_limit_of_the_program() -> None:
    labels = [(" + ".join(b), round(SCORES.score(0, b) * NANO)) for b in SCORES.blocks(0)]
    layers = tuple(
        tuple(
            # What the solver minimises here is the opposite order of what the limit counts.
            Choice(label, NANO - score, (1,))
            for label, score in labels
        )
        for _ in range(2)
    )
    problem = Problem(("bytes",), layers, (0,), (Limit("bytes", upper=9),))
    flat = ScoreTable(dict.fromkeys(range(2), SCORES.measured[0]), SCORES.gammas)
    (free,) = solve(with_most_kl(problem, flat, math.inf), solutions=1)
    assert free.objective == 2 * (NANO - NANO // 2)
    (held,) = solve(with_most_kl(problem, flat, 0.45), solutions=1)
    assert held.totals["kl"] == round(0.4 * NANO)
