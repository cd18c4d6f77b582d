"""Score composition, gamma, costs and limits as the solver gets them."""

from __future__ import annotations

import itertools

import pytest

from inlay.nas.job.budget import parse_budget
from inlay.nas.loop.probes import shares
from inlay.nas.tables.architecture import PARENT_BLOCK, architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import build_problem
from inlay.nas.tables.scores import ScoreTable, fit_gammas
from inlay.solver import solve

ATTENTION = ("attention:parent", "attention:kv_heads=1", "attention:no_op")
FFN = ("ffn:parent", "ffn:width=8")


def score_rows(layers: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for layer in range(layers):
        for number, label in enumerate(ATTENTION[1:], start=1):
            rows.append({"layer": layer, "attention": label, "ffn": FFN[0], "kl_nats": 0.1 * number * (layer + 1)})
        rows.append({"layer": layer, "attention": ATTENTION[0], "ffn": FFN[1], "kl_nats": 0.05 * (layer + 1)})
    rows.append({"layer": 0, "attention": ATTENTION[1], "ffn": FFN[1], "kl_nats": 0.12})
    return rows


def cost_rows(layers: int) -> list[dict[str, object]]:
    times = {"attention:parent": 50, "attention:kv_heads=1": 40, "ffn:parent": 70, "ffn:width=8": 30}
    rows: list[dict[str, object]] = []
    for layer, (label, time) in itertools.product(range(layers), times.items()):
        sizes = {"parameters": 10 * time, "weights_bytes": 40 * time, "kv_bytes": 7 if "attention" in label else 0}
        row = {"scenario": "chat", "layer": layer, "slot": label.split(":")[0], "variant": label}
        rows.append({**row, "prefill_ns": time, "decode_ns": 1, "runtime_ns": time + 4, **sizes})
    ends = {"prefill_ns": 9, "decode_ns": 2, "runtime_ns": 17, "parameters": 100, "weights_bytes": 400, "kv_bytes": 0}
    rows.append({"scenario": "chat", "layer": -1, "slot": "ends", "variant": "ends", **ends})
    return rows


def paired(pairs: list[tuple[str, str, float]]) -> dict[int, dict[tuple[str, str], float]]:
    """A layer for each pair: its two variants cost 0.1 alone, together so many times their sum."""
    return {
        layer: {(attention, FFN[0]): 0.1, (ATTENTION[0], ffn): 0.1, (attention, ffn): ratio * 0.2}
        for layer, (attention, ffn, ratio) in enumerate(pairs)
    }


def test_gamma_is_the_ratio_of_joint_to_single_scores() -> None:
    table = ScoreTable.of(score_rows(2))
    assert table.gammas.common == pytest.approx(0.12 / 0.15)
    assert fit_gammas({0: {(ATTENTION[1], FFN[0]): 0.3}}).common == 1.0


def test_one_catastrophic_pair_does_not_decide_gamma() -> None:
    good = [("attention:window=8", f"ffn:width={n}", 0.7 + 0.02 * n) for n in range(5)]
    gammas = fit_gammas(paired([*good, ("attention:window=8", "ffn:width=9", 60.0)]))
    assert gammas.common == pytest.approx(0.75, abs=0.02)
    assert gammas.of(("attention:window=4", "ffn:width=1")) == pytest.approx(0.75, abs=0.02)


def test_a_pair_of_kinds_has_its_own_gamma_and_the_common_one_where_few_pairs_tell() -> None:
    linear = [("attention:linear", "ffn:width=8", 2.0)] * 12
    heads = [("attention:kv_heads=1", "ffn:width=8", 0.5)] * 12
    gammas = fit_gammas(paired([*linear, *heads, ("attention:no_op", "ffn:no_op", 0.1)]))
    assert gammas.common == pytest.approx(0.5)
    assert gammas.of(("attention:linear", "ffn:width=4")) == pytest.approx(2.0**0.5, rel=0.01)
    assert gammas.of(("attention:no_op", "ffn:linear")) == gammas.common
    few = gammas.of(("attention:no_op", "ffn:no_op"))
    assert 0.3 < few < 0.5, "one pair moves its kind, and not far"


def test_a_pair_without_a_ratio_says_nothing() -> None:
    assert fit_gammas(paired([("attention:linear", "ffn:width=8", 0.0)])).common == 1.0


def test_scores_compose_as_the_design_says() -> None:
    table = ScoreTable.of(score_rows(2))
    assert table.score(1, PARENT_BLOCK) == 0
    assert table.score(1, (ATTENTION[1], FFN[0])) == pytest.approx(0.2)
    assert table.score(0, (ATTENTION[1], FFN[1])) == pytest.approx(0.12)
    assert table.score(1, (ATTENTION[1], FFN[1])) == pytest.approx(table.gammas.common * 0.3)
    assert len(table.blocks(0)) == len(ATTENTION) * len(FFN)


def test_an_ffn_that_stands_beside_no_attention_is_a_choice_of_its_own() -> None:
    """Its score is what was measured, it says nothing of gamma, and it stands beside no other attention."""
    alone = ("attention:no_op", "ffn:alone=8")
    rows = score_rows(1)
    table = ScoreTable.of([*rows, {"layer": 0, "attention": alone[0], "ffn": alone[1], "kl_nats": 0.03}])
    assert table.gammas == ScoreTable.of(rows).gammas
    assert [block for block in table.blocks(0) if block[1] == alone[1]] == [alone]
    assert len(table.blocks(0)) == len(ATTENTION) * len(FFN) + 1
    assert table.score(0, alone) == 0.03
    assert shares(table, 0, alone) == {"ffn:alone=8": 1.0}
    costs = CostTable([*cost_rows(1), {**cost_rows(1)[3], "variant": alone[1]}])
    (solution,) = solve(build_problem(table, costs, parse_budget({"runtime": "0.4x"}), {"chat": 4}))
    assert architecture_of(solution.labels) == (alone,)


def test_a_relative_limit_is_of_the_parent_in_the_same_table_ends_included() -> None:
    scores, costs = ScoreTable.of(score_rows(3)), CostTable(cost_rows(3))
    problem = build_problem(scores, costs, parse_budget({"runtime": "0.5x"}), {"chat": 4})
    parent = costs.total("chat", [PARENT_BLOCK] * 3)["runtime_ns"]
    assert parent == 17 + 3 * (54 + 74)
    assert [limit.upper for limit in problem.limits] == [parent // 2]


def test_the_solution_is_the_best_of_all_architectures() -> None:
    scores, costs = ScoreTable.of(score_rows(3)), CostTable(cost_rows(3))
    problem = build_problem(scores, costs, parse_budget({"runtime": "0.6x", "memory": "0.9x"}), {"chat": 4})
    (solution,) = solve(problem)
    limits = {limit.name: limit.upper for limit in problem.limits}
    feasible = []
    for architecture in itertools.product(scores.blocks(0), repeat=3):
        total = costs.total("chat", architecture)
        memory = total["weights_bytes"] + total["kv_bytes"]
        if total["runtime_ns"] <= limits["runtime"] and memory <= limits["memory"]:
            feasible.append(sum(round(scores.score(layer, block) * 1e9) for layer, block in enumerate(architecture)))
    assert solution.status == "optimal"
    assert solution.objective == min(feasible)
    assert len(architecture_of(solution.labels)) == 3


def test_a_throughput_is_a_limit_on_the_runtime() -> None:
    scores, costs = ScoreTable.of(score_rows(2)), CostTable(cost_rows(2))
    problem = build_problem(scores, costs, parse_budget({"throughput": "2x"}), {"chat": 8})
    parent = costs.total("chat", [PARENT_BLOCK] * 2)["runtime_ns"]
    assert problem.limits[0].name == "runtime"
    assert problem.limits[0].upper == pytest.approx(parent / 2, abs=1)
