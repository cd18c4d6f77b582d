"""Swaps around an architecture: what fits the limits, and what spends what is left of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.nas.loop.swaps import neighbours, spending
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks
from inlay.nas.tables.problem import ScoreTable
from inlay.solver import Choice, Limit, Problem

ATTENTION, FFN = PARENT_BLOCK
HALF, QUARTER = (ATTENTION, "ffn:width=8"), (ATTENTION, "ffn:width=4")
BLOCKS: list[Block] = [PARENT_BLOCK, HALF, QUARTER]
COSTS = {PARENT_BLOCK: 16, HALF: 8, QUARTER: 4}


def tables(scores: list[tuple[float, float]], upper: int) -> tuple[ScoreTable, Problem]:
    """A table of a half and a quarter at each layer, and the problem under one limit on their width."""
    held = {layer: {HALF: half, QUARTER: quarter} for layer, (half, quarter) in enumerate(scores)}
    table = ScoreTable(held, 1.0)
    layers = tuple(
        tuple(Choice(" + ".join(b), round(table.score(layer, b) * 1e9), (COSTS[b],)) for b in table.blocks(layer))
        for layer in held
    )
    return table, Problem(("width",), layers, (2,), (Limit("width", upper=upper),))


def cost(architecture: Blocks) -> int:
    return 2 + sum(COSTS[block] for block in architecture)


SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(10, 70), st.data())
def test_spending_swaps_are_all_that_fit_take_more_and_are_not_predicted_to_be_worse(scores, upper, data) -> None:
    table, problem = tables(scores, upper)
    start = tuple(data.draw(st.sampled_from(BLOCKS)) for _ in scores)
    found = spending(start, table, problem)
    expected = {
        (*start[:layer], block, *start[layer + 1 :])
        for layer in range(len(start))
        for block in BLOCKS
        if COSTS[block] > COSTS[start[layer]] and table.score(layer, block) <= table.score(layer, start[layer])
    }
    assert set(found) == {architecture for architecture in expected if cost(architecture) <= upper}
    predicted = [table.predict(architecture) for architecture in found]
    assert predicted == pytest.approx(sorted(predicted))


def test_nothing_spends_a_budget_that_is_used_up() -> None:
    table, problem = tables([(0.1, 0.3), (0.2, 0.4)], upper=18)
    assert spending((HALF, HALF), table, problem) == []


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(10, 70), st.data())
def test_neighbours_fit_and_differ_in_one_or_two_layers(scores, upper, data) -> None:
    table, problem = tables(scores, upper)
    start = tuple(data.draw(st.sampled_from(BLOCKS)) for _ in scores)
    found = neighbours(start, table, problem)
    assert len(set(found)) == len(found)
    for architecture in found:
        assert 1 <= sum(a != b for a, b in itertools.zip_longest(architecture, start)) <= 2
        assert cost(architecture) <= upper
