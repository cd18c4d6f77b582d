"""Which candidates are affordable when measured, and when corrections of the predicted times end."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from inlay.nas.embedded import embedded_parent
from inlay.nas.errors import InfeasibleError
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.conditions import conditions_of
from inlay.nas.loop.pool import Candidate, Pool
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables
from inlay.nas.loop.true_times import TRUE_TIMES
from inlay.nas.pieces.comparison import Comparison, Difference
from inlay.nas.pieces.measuring import Measured
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.assemble import TIME_CORRECTIONS, affordable
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks
from inlay.nas.tables.costs import ADDED, CostTable
from inlay.nas.tables.problem import ScoreTable
from inlay.nas.workspace import Workspace

CHEAP = ("attention:parent", "ffn:width=8")
OTHER = ("attention:window=8", "ffn:width=8")
LAYERS = 4
NS = {"attention:parent": 400, "attention:window=8": 390, "ffn:parent": 1000, "ffn:width=8": 200, "ends": 100}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Four layers whose ffn may be narrower; `CHEAP` everywhere is predicted 1.5 % above the budget, `OTHER` within."""
    labels = [label for label in NS if label != "ends"]
    places = [*((layer, label) for layer in range(LAYERS) for label in labels), (-1, "ends")]
    rows = [
        {"scenario": "chat", "layer": layer, "slot": label.split(":")[0], "variant": label}
        | {name: NS[label] * 1000 if name.endswith("_ns") else 1 for name in ADDED}
        for layer, label in places
    ]
    job = Job.from_dict(
        {
            "parent": "inlay:pystdlib",
            "data": {
                "distill": {"path": "inlay:pystdlib/train", "sequence_length": 64},
                "validate": {"path": "inlay:pystdlib/held_out"},
            },
            "space": {"attention": [{"window": 8}], "ffn": [{"width": 8}]},
            "hardware": {"scenarios": [{"name": "chat"}]},
            "budget": {"runtime": "0.432x"},
        },
        folder=tmp_path,
    )
    # Nothing here reaches a worker: where times would be taken is said, and the times are in the store's records.
    parent = open_parent(embedded_parent("pystdlib"))
    search = Search(job, Workspace(tmp_path / "job.search"), parent, cast(Any, None), Reporter())
    search.environments["thread"] = {"device": "a processor"}
    scores = ScoreTable({layer: {PARENT_BLOCK: 0.0} for layer in range(LAYERS)}, 1.0)
    tables = Tables(scores, CostTable(rows), {"chat": 128})
    return Pool(search, Ids("", (1, 1)), Library({}), tables)


def candidate(pool: Pool, block: tuple[str, str], times_predicted: float, error: float) -> Candidate:
    """One block everywhere, measured at so many times its predicted runtime, with a relative standard error."""
    blocks: Blocks = (block,) * LAYERS
    costs = pool.tables.costs
    own, parent = costs.total("chat", blocks), costs.total("chat", (PARENT_BLOCK,) * LAYERS)
    names = ("prefill", "decode", "runtime")
    ratios = {name: times_predicted * own[f"{name}_ns"] / parent[f"{name}_ns"] for name in names}
    errors = dict.fromkeys(names, error)
    times = {f"{name}_ns": round(ratios[name] * parent[f"{name}_ns"]) for name in names}
    measured = Measured(
        **times,
        spread_ns=0,
        time_errors=errors,
        ratios=ratios,
        ratio_errors=errors,
        parent={f"{name}_ns": parent[f"{name}_ns"] for name in names},
    )
    found = Candidate(
        blocks, "pool", 0, 0.1, Comparison(0.1, 0.01, 0.1, 0.9, 3.0, np.array([0.1])), Difference(0.0, None)
    )
    (scenario,) = pool.search.job.hardware.scenarios
    pool.search.times_read[found.id] = {
        "conditions": conditions_of(pool.search, scenario, TRUE_TIMES.version),
        "measured": {found.id: asdict(measured)},
    }
    return found


@pytest.mark.parametrize(("error", "fits"), [(0.001, False), (0.02, True)])
def test_a_miss_within_the_noise_is_no_miss(pool: Pool, error: float, fits: bool) -> None:
    """It measures 2.5 % above the limit."""
    pool.candidates = [candidate(pool, CHEAP, 1.01, error)]
    found, missed = pool.judge_some(pool.candidates, 1)
    assert (len(found), missed) == ((1, 0) if fits else (0, 1))
    assert pool.may_fit(pool.candidates[0]) == fits


@pytest.mark.parametrize(("error", "again"), [(0.001, 1), (0.03, 0)])
def test_corrections_end_where_they_say_no_more_than_the_noise(pool: Pool, error: float, again: int) -> None:
    """One fits, and another is 4 % slower than predicted: with certain times that is learnt, else it is left alone."""
    fits, slower = candidate(pool, OTHER, 0.97, error), candidate(pool, CHEAP, 1.04, error)
    pool.candidates = [fits, slower]
    searched: list[int] = []
    found = affordable(pool, lambda: pool.candidates, 2, lambda: searched.append(1))
    assert found == [fits]
    assert slower.excesses is not None
    assert len(searched) == again


def test_where_nothing_fits_costs_are_corrected_as_often_as_may_be(pool: Pool) -> None:
    pool.candidates = [candidate(pool, CHEAP, 1.2, 0.03)]
    searched: list[int] = []
    with pytest.raises(InfeasibleError, match=r"the nearest, \w+: chat.runtime is 21.8 % over its limit"):
        affordable(pool, lambda: pool.candidates, 1, lambda: searched.append(1))
    assert len(searched) == TIME_CORRECTIONS


@pytest.mark.parametrize(("faster", "learnt"), [(0.8, True), (0.99, False)])
def test_a_budget_that_is_left_over_is_seen(pool: Pool, faster: float, learnt: bool) -> None:
    """What measures faster than predicted shows that more fits; within the noise it shows nothing."""
    pool.candidates = [candidate(pool, OTHER, faster, 0.01), candidate(pool, CHEAP, 1.2, 0.01)]
    best, dearer = pool.candidates
    assert affordable(pool, lambda: [best], 1, lambda: None) == [best]
    predicted = pool.costs.total("chat", dearer.architecture)["runtime_ns"]
    assert pool.learn_times() == learnt
    assert (pool.costs.total("chat", dearer.architecture)["runtime_ns"] < 0.97 * predicted) == learnt
    assert not pool.learn_times(), "nothing more is learnt from the same times"
