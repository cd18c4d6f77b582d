"""`memory_peak` as a quantity of the budget: weights, cache and the buffers that the engine computes in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inlay.nas.errors import UserError
from inlay.nas.job.budget import parse_budget
from inlay.nas.loop.time_corrections import paced
from inlay.nas.pieces.measuring import Measured
from inlay.nas.tables.architecture import PARENT_BLOCK, architecture_of
from inlay.nas.tables.costs import ADDED, CostTable, quantities
from inlay.nas.tables.problem import build_problem
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import solve

LAYERS = 4
HALF = ("attention:parent", "ffn:width=8")
PARENT = [PARENT_BLOCK] * LAYERS


def table(compute: int | None) -> CostTable:
    """Weights of 10 a subblock, 5 of a narrow ffn, 20 of the ends; a cache of 2 for each attention."""

    def row(layer: int, slot: str, variant: str, weights: int, kv: int) -> dict[str, Any]:
        place = {"scenario": "chat", "layer": layer, "slot": slot, "variant": variant}
        return {**place, **dict.fromkeys(ADDED, 1), "weights_bytes": weights, "kv_bytes": kv}

    rows = [row(-1, "ends", "ends", 20, 0) | {"compute_bytes": compute}]
    for layer in range(LAYERS):
        rows += [row(layer, "attention", "attention:parent", 10, 2), row(layer, "ffn", "ffn:parent", 10, 0)]
        rows.append(row(layer, "ffn", "ffn:width=8", 5, 0))
    return CostTable(rows)


SCORES = ScoreTable({layer: {PARENT_BLOCK: 0.0, HALF: 0.1} for layer in range(LAYERS)})


@pytest.mark.parametrize(("limit", "most"), [("140B", 140), ("0.9x", 135)])
def test_it_is_limited_absolutely_and_relative_to_the_parent(limit: str, most: int) -> None:
    costs = table(42)
    assert quantities(costs.total("chat", PARENT), 1)["memory_peak"] == 20 + 4 * 22 + 42 == 150
    (solution,) = solve(build_problem(SCORES, costs, parse_budget({"memory_peak": limit}), {"chat": 1}))
    child = architecture_of(solution.labels)
    peak = quantities(costs.total("chat", child), 1)["memory_peak"]
    assert solution.totals["memory_peak"] == peak <= most < peak + 5
    assert child.count(HALF) == (2 if most == 140 else 3)


def test_an_engine_that_does_not_tell_its_buffers_has_no_peak() -> None:
    costs = table(None)
    assert "memory_peak" not in quantities(costs.total("chat", PARENT), 1)
    assert "memory_peak" not in build_problem(SCORES, costs, parse_budget({"memory": "0.9x"}), {"chat": 1}).cost_names
    with pytest.raises(UserError) as caught:
        build_problem(SCORES, costs, parse_budget({"chat": {"memory_peak": "0.9x"}}), {"chat": 1})
    assert str(caught.value) == (
        "budget.chat.memory_peak: the cost table does not tell the engine's compute buffers, so no peak is known; "
        "limit `memory`, which is weights and cache"
    )


def test_a_model_that_computes_in_more_raises_the_bound() -> None:
    exact = dict.fromkeys(("prefill", "decode", "runtime"), 0.0)
    ratios = dict.fromkeys(exact, 1.0)
    parent = {f"{name}_ns": 9 for name in exact}
    measured = Measured(9, 9, 9, 0, exact, ratios, exact, parent, {"compute_bytes": 50}, {"compute_bytes": 41})
    budget = parse_budget({"memory_peak": "0.9x"})
    raised = paced(table(42), budget, [(tuple([HALF] * LAYERS), {"chat": measured})])
    assert raised.ends("chat")["compute_bytes"] == 50
    less = replace(measured, held={"compute_bytes": 30})
    assert paced(table(42), budget, [(tuple([HALF] * LAYERS), {"chat": less})]).ends("chat")["compute_bytes"] == 42
