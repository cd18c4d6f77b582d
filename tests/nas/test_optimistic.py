"""What the benefit of every doubt leaves out is in no best solution, whatever it would have come to."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from inlay.nas.job.budget import parse_budget
from inlay.nas.tables.architecture import PARENT_BLOCK, Block
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.optimistic import GAP, best_around, budgets_around, optimistic
from inlay.nas.tables.problem import build_problem
from inlay.nas.tables.scores import Gammas, ScoreTable
from inlay.solver import Problem, solve

LAYERS = 6
SIZES = {"attention:kv_heads=2": 60, "attention:kv_heads=1": 40, "ffn:width=16": 70, "ffn:width=8": 30}
OWN = dict.fromkeys(PARENT_BLOCK, 100)
MOST = 0.5
"""What a variant may lose of its KL."""

Places = dict[tuple[int, str], float]


def costs() -> CostTable:
    rows: list[dict[str, object]] = []
    for layer, (label, size) in itertools.product(range(LAYERS), {**OWN, **SIZES}.items()):
        place = {"scenario": "chat", "layer": layer, "slot": label.split(":")[0], "variant": label}
        amounts = dict.fromkeys(("prefill_ns", "decode_ns", "runtime_ns", "parameters", "weights_bytes"), size)
        rows.append({**place, **amounts, "kv_bytes": 0})
    amounts = dict.fromkeys(("prefill_ns", "decode_ns", "runtime_ns", "parameters", "weights_bytes"), 10)
    rows.append({"scenario": "chat", "layer": -1, "slot": "ends", "variant": "ends", **amounts, "kv_bytes": 0})
    return CostTable(rows)


def table(nats: Places) -> ScoreTable:
    measured: dict[int, dict[Block, float]] = {}
    for (layer, label), value in nats.items():
        alone = (label, PARENT_BLOCK[1]) if label.startswith("attention") else (PARENT_BLOCK[0], label)
        measured.setdefault(layer, {})[alone] = value
    return ScoreTable(measured, Gammas(0.8))


def problem_of(scores: ScoreTable) -> Problem:
    return build_problem(scores, costs(), parse_budget({"parameters": "0.6x"}), {"chat": 4})


@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_what_is_finished_is_the_best_of_all(seed: int) -> None:
    chance = random.Random(seed)
    places = list(itertools.product(range(LAYERS), SIZES))
    begun: Places = {place: chance.uniform(0.01, 1.0) * (100 - SIZES[place[1]]) / 100 for place in places}
    ended: Places = {place: nats * (1 - chance.uniform(0.0, MOST)) for place, nats in begun.items()}
    finished: set[tuple[int, str]] = set()

    def now() -> ScoreTable:
        return table({place: (ended if place in finished else begun)[place] for place in places})

    def may_lose(layer: int, label: str) -> float:
        return MOST if (layer, label) in set(places) - finished else 0.0

    def wanted() -> set[tuple[int, str]]:
        solutions = best_around(problem_of(optimistic(now(), may_lose)))
        held = {(layer, label) for blocks in solutions for layer, block in enumerate(blocks) for label in block}
        return held & (set(places) - finished)

    while more := wanted():
        finished |= more
    assert len(finished) < len(places), "something was left out"
    for reached, all_of_it in zip(
        budgets_around(problem_of(now())), budgets_around(problem_of(table(ended))), strict=True
    ):
        ours, best = solve(reached)[0].objective, solve(all_of_it)[0].objective
        assert ours is not None
        assert best is not None
        assert ours <= best * (1 + 2 * GAP), "what was left, finished, would have been better"


def test_the_budgets_lie_around_the_job_s_and_limits_that_bind_nothing_stay() -> None:
    limits = parse_budget({"parameters": "0.6x", "weights": "1x"})
    problem = build_problem(table({(0, label): 0.1 for label in SIZES}), costs(), limits, {"chat": 4})
    own = {limit.name: limit.upper for limit in problem.limits}
    found = [{limit.name: limit.upper for limit in each.limits} for each in budgets_around(problem)]
    assert found[1] == own
    assert {each["weights"] for each in found} == {own["weights"]}
    parent = 10 + 200
    assert [each["parameters"] for each in found] == [
        math.floor(parent ** (1 - way) * own["parameters"] ** way) if way != 1 else own["parameters"]
        for way in (0.9, 1.0, 1.1)
    ]
    assert found[0]["parameters"] > found[1]["parameters"] > found[2]["parameters"]


def test_pairs_that_were_measured_are_composed_again() -> None:
    held = {("attention:kv_heads=1", "ffn:parent"): 0.2, ("attention:parent", "ffn:width=8"): 0.4}
    both = {**held, ("attention:kv_heads=1", "ffn:width=8"): 0.5}
    scores = optimistic(ScoreTable({0: both}, Gammas(0.9)), lambda layer, label: 0.25 if "width" in label else 0.0)
    assert scores.score(0, ("attention:kv_heads=1", "ffn:parent")) == 0.2
    assert scores.score(0, ("attention:parent", "ffn:width=8")) == pytest.approx(0.3)
    assert scores.score(0, ("attention:kv_heads=1", "ffn:width=8")) == pytest.approx(0.9 * 0.5)
