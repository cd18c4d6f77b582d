"""Runs of layers in tables and the program: what an architecture is made of, and that the best one is found."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from inlay.nas.cli.scenarios import restated
from inlay.nas.families import open_parent
from inlay.nas.job import Scenario, Space
from inlay.nas.job.budget import parse_budget
from inlay.nas.loop.baselines import everywhere
from inlay.nas.loop.probes import shares
from inlay.nas.loop.swaps import neighbours, spending
from inlay.nas.stages.space_sizes import least_sizes, num_architectures
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks, architecture_of, choice_label, choices_of, spread
from inlay.nas.tables.configs import config_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import alternative_of, build_problem
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import kv_bytes, variants_of
from inlay.nas.variants.storage import AsParent
from inlay.solver import Problem, solve

NOTHING: Block = ("attention:no_op", "ffn:no_op")
TWO: Block = ("attention:merge=2", "ffn:merge=2")
THREE: Block = ("attention:fuse=3", "ffn:fuse=3")
HALF: Block = ("attention:parent", "ffn:width=8")
LAYERS = 4
ENDS, CACHE = "ends:parent@q8_0", "kv:q8_0"


def tables(seed: int) -> tuple[ScoreTable, CostTable]:
    """Four layers with runs wherever they can begin, embedding and head in two formats, keys and values in two."""
    random = np.random.default_rng(seed)
    offered = {layer: [HALF, *([TWO] if layer < 3 else []), *([THREE] if layer < 2 else [])] for layer in range(LAYERS)}
    measured = {layer: {block: float(random.uniform(0.01, 1)) for block in held} for layer, held in offered.items()}
    scores = ScoreTable(measured, ends={ENDS: 0.02}, caches={CACHE: 0.03})
    rows: list[dict[str, object]] = []

    def row(layer: int, slot: str, variant: str, kv: int = 0) -> dict[str, object]:
        sizes = {
            "parameters": int(random.integers(1, 90)),
            "weights_bytes": int(random.integers(1, 90)),
            "kv_bytes": kv,
        }
        times = dict.fromkeys(("prefill_ns", "decode_ns"), 1) | {"runtime_ns": int(random.integers(1, 90))}
        return {"scenario": "chat", "layer": layer, "slot": slot, "variant": variant, **times, **sizes}

    for layer, held in offered.items():
        for attention, ffn in dict.fromkeys((PARENT_BLOCK, *held)):
            if all(each["layer"] != layer or each["variant"] != attention for each in rows):
                rows.append(row(layer, "attention", attention, 8))
                rows.append({**rows[-1], "variant": f"{attention} + {CACHE}", "kv_bytes": 4})
            rows.append(row(layer, "ffn", ffn))
    rows += [row(-1, "ends", "ends"), row(-1, "ends", ENDS)]
    return scores, CostTable(rows)


def fillings(layer: int = 0) -> Iterator[list[Block]]:
    """Every way to fill the layers from one on, written out."""
    if layer == LAYERS:
        yield []
        return
    for blocks in ([PARENT_BLOCK], [HALF], [TWO, NOTHING], [THREE, NOTHING, NOTHING]):
        if layer + len(blocks) <= LAYERS:
            yield from ([*blocks, *rest] for rest in fillings(layer + len(blocks)))


def architectures() -> list[Blocks]:
    return [
        (*blocks[:-1], (*blocks[-1], *whole))
        for blocks in fillings()
        for whole in ((), (ENDS,), (CACHE,), (ENDS, CACHE))
    ]


def problem_of(scores: ScoreTable, costs: CostTable, runtime: str) -> Problem:
    return build_problem(scores, costs, parse_budget({"runtime": runtime, "weights": "0.8x"}), {"chat": 4})


def fits(problem: Problem, costs: CostTable, architecture: Blocks) -> bool:
    total, limits = costs.total("chat", architecture), {limit.name: limit.upper for limit in problem.limits}
    return total["runtime_ns"] <= limits["runtime"] and total["weights_bytes"] <= limits["weights"]


def test_an_architecture_is_its_choices() -> None:
    every = architectures()
    assert len(every) == len(set(every)) == 4 * len(list(fillings()))
    for architecture in every:
        choices = list(choices_of(architecture))
        assert tuple(block for _, own in choices for block in spread(own)) == architecture
        labels = [choice_label(own) for _, own in choices for _ in spread(own)]
        assert architecture_of(labels) == architecture
    assert dict(choices_of((TWO, NOTHING, PARENT_BLOCK, NOTHING))) == {0: TWO, 2: PARENT_BLOCK, 3: NOTHING}


@pytest.mark.parametrize("seed", range(12))
def test_the_solution_is_the_best_of_all_ways_to_fill_the_layers(seed: int) -> None:
    scores, costs = tables(seed)
    problem = problem_of(scores, costs, f"{0.5 + 0.04 * seed}x")
    best = {
        architecture: sum(round(scores.score(layer, block) * 1e9) for layer, block in choices_of(architecture))
        for architecture in architectures()
        if fits(problem, costs, architecture)
    }
    (solution,) = solve(problem)
    if not best:
        assert solution.status == "infeasible"
        return
    found = architecture_of(solution.labels)
    assert solution.status == "optimal"
    assert solution.objective == min(best.values()) == best[found]
    total = costs.total("chat", found)
    assert {name: solution.totals[name] for name in ("runtime", "weights", "kv")} == {
        "runtime": total["runtime_ns"], "weights": total["weights_bytes"], "kv": total["kv_bytes"]
    }  # fmt: skip
    assert scores.predict(found) == pytest.approx(solution.objective / 1e9, abs=1e-8)
    alternative = alternative_of(problem, solution.labels[-1])
    assert [choice.label for choice in alternative.layers[0]].count(solution.labels[0]) == 1
    again = restated(problem, solution)
    assert (again.objective, again.totals) == (solution.objective, solution.totals)


@pytest.mark.parametrize("seed", range(6))
def test_swaps_give_whole_architectures_that_fit(seed: int) -> None:
    """Runs come in, go out for the parent's own, and change places with others, never over each other."""
    scores, costs = tables(seed)
    problem, every = problem_of(scores, costs, "0.9x"), set(architectures())
    seen = set()
    for start in sorted(every)[seed::6]:
        found = neighbours(start, scores, problem)
        assert set(found) <= every - {start}
        assert all(fits(problem, costs, architecture) for architecture in found)
        assert len(set(found)) == len(found)
        own = scores.predict(start)
        for architecture in spending(start, scores, problem):
            assert fits(problem, costs, architecture)
            assert scores.predict(architecture) <= own + 1e-9
        seen |= {(TWO in start, TWO in architecture) for architecture in found}
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_runs_stand_one_behind_the_other_where_one_block_is_everywhere() -> None:
    scores, _ = tables(0)
    found = {tuple(block[:2] for block in each) for each in everywhere(scores, LAYERS)}
    assert (TWO, NOTHING, TWO, NOTHING) in found
    assert (THREE, NOTHING, NOTHING, PARENT_BLOCK) in found
    assert shares(scores, 0, TWO) == {TWO[1]: 1.0}


def test_the_space_is_counted_and_its_least_sizes_are_reached(tiny_parent) -> None:
    parent = open_parent(tiny_parent("llama"))
    shape, scenario = parent.shape, Scenario(prefill=8, generate=8)
    space = [variants_of(Space(layers=[{"merge": 2}, {"fuse": 3}]), shape, layer) for layer in range(3)]
    # No run, merge at 0 or 1, fuse at 0.
    assert num_architectures(space) == 4
    found = least_sizes(parent, space, (), scenario, AsParent())
    merged = config_of(parent.config, shape, (TWO, NOTHING, PARENT_BLOCK)).blocks
    assert found["weights"] == AsParent().model(shape, merged)
    assert found["kv"] == kv_bytes(merged[0]["attention"], shape, 1, 16)  # one attention is left of a run of three
