"""Measured times of whole models correct the cost table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inlay.nas.job.budget import parse_budget
from inlay.nas.loop.time_corrections import paced
from inlay.nas.pieces.measuring import Measured
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks
from inlay.nas.tables.costs import ADDED, CostTable

NS = {"attention:parent": 400, "attention:window=8": 300, "ffn:parent": 600, "ffn:width=8": 200, "ends": 1000}
LAYERS = 4
PARENT: Blocks = (PARENT_BLOCK,) * LAYERS
CHILD: Blocks = (PARENT_BLOCK, ("attention:window=8", "ffn:width=8"), ("attention:window=8", "ffn:no_op"), PARENT_BLOCK)


def cost_table() -> CostTable:
    def row(layer: int, slot: str, variant: str) -> dict[str, Any]:
        times = {name: NS[variant] * 1000 * (2 if name == "runtime_ns" else 1) for name in ADDED if name[-3:] == "_ns"}
        return {
            "scenario": "chat",
            "layer": layer,
            "slot": slot,
            "variant": variant,
            **dict.fromkeys(ADDED, 7),
            **times,
        }

    layers = [row(layer, label.split(":")[0], label) for layer in range(LAYERS) for label in NS if label != "ends"]
    return CostTable([*layers, row(-1, "ends", "ends")])


def measured(architecture: Blocks, ratio: float, machine: float) -> Measured:
    """Times `ratio` of what the table says of the architecture against its parent, on a machine so much slower."""
    costs = cost_table()
    own, parent = costs.total("chat", architecture), costs.total("chat", PARENT)
    times = {name: round(own[name] * ratio * machine) for name in ("prefill_ns", "decode_ns", "runtime_ns")}
    ratios = {name: ratio * own[f"{name}_ns"] / parent[f"{name}_ns"] for name in ("prefill", "decode", "runtime")}
    parents = {name: round(parent[name] * machine) for name in times}
    errors = dict.fromkeys(ratios, 0.001)
    return Measured(**times, spread_ns=0, time_errors=errors, ratios=ratios, ratio_errors=errors, parent=parents)


def test_a_slower_child_raises_its_variants_and_leaves_the_parent() -> None:
    costs = cost_table()
    learnt = paced(costs, parse_budget({"runtime": "0.6x"}), [(CHILD, {"chat": measured(CHILD, 1.15, 1.0)})])
    was, now = costs.total("chat", CHILD), learnt.total("chat", CHILD)
    assert now["runtime_ns"] == pytest.approx(1.15 * was["runtime_ns"], rel=0.03)
    assert learnt.total("chat", PARENT)["runtime_ns"] == pytest.approx(
        costs.total("chat", PARENT)["runtime_ns"], rel=0.03
    )
    assert learnt.of("chat", 1, "ffn:width=8")["runtime_ns"] > costs.of("chat", 1, "ffn:width=8")["runtime_ns"]
    assert {name: now[name] for name in ADDED[3:]} == {name: was[name] for name in ADDED[3:]}


def test_a_slower_machine_changes_nothing_for_relative_limits_and_everything_for_absolute_ones() -> None:
    costs = cost_table()
    slow, fast = ({"chat": measured(CHILD, 1.1, machine)} for machine in (2.0, 1.0))
    relative = parse_budget({"runtime": "0.6x"})
    assert paced(costs, relative, [(CHILD, slow)]).rows == paced(costs, relative, [(CHILD, fast)]).rows
    twice = paced(costs, parse_budget({"runtime": "5ms"}), [(CHILD, slow)])
    assert twice.total("chat", PARENT)["runtime_ns"] == pytest.approx(
        2 * costs.total("chat", PARENT)["runtime_ns"], rel=0.03
    )
    assert twice.total("chat", CHILD)["runtime_ns"] == pytest.approx(slow["chat"].runtime_ns, rel=0.03)


def test_right_predictions_and_no_measurements_leave_the_table() -> None:
    costs, budget = cost_table(), parse_budget({"throughput": "1.5x"})
    assert paced(costs, budget, []) is costs
    exact = {"chat": measured(CHILD, 1.0, 1.0)}
    assert (
        paced(costs, budget, [(CHILD, exact), (CHILD, {"chat": replace(exact["chat"], spread_ns=9)})]).rows
        == costs.rows
    )
