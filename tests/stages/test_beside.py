"""The second pass: an ffn that stands in for a dropped attention is trained where the first solve drops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.pieces.texts import Texts
from inlay.nas.stages.beside import add_beside, first_variants, variants_beside
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.scoring import score_all
from inlay.nas.stages.tuning.child import find_child
from inlay.nas.tables.architecture import architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable

DROPPED = "attention:no_op"
BESIDE = {"ffn:alone=48", "ffn:alone=24"}


def job_of(parent: Path, texts: tuple[Path, Path], budget: dict[str, str], **changes: Any) -> Job:
    return Job.from_dict(
        {
            "parent": str(parent),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 1024},
            },
            "space": {"attention": ["no_op"], "ffn": [{"width": 24}, {"alone": 1.0}, {"alone": 24}]},
            "distill": {"tokens": 1024, "batch_size": 4},
            "score": {"pairs": 2},
            "solve": {"pool": 1},
            "hardware": {"scenarios": [{"name": "chat", "prefill": 8, "generate": 4}]},
            "budget": budget,
            **changes,
        }
    )


@pytest.fixture
def searched(
    tiny_parent: Callable[..., Path], texts: Any, make_search: Any, tmp_path: Path
) -> Callable[..., tuple[SmallSearch, Texts, CostTable]]:
    """`searched(budget)`: a search of a tiny parent with its texts and costs."""

    def search(budget: dict[str, str], **changes: Any) -> tuple[SmallSearch, Texts, CostTable]:
        made = make_search(job_of(tiny_parent("llama"), texts, budget, **changes), tmp_path / "search")
        found = store_texts(pack_texts(made.job, made.parent.tokenizer()), made.workspace)
        return made, found, CostTable(cost_rows(made))

    return search


def trained_at(records: Any) -> set[tuple[int, str]]:
    return {(int(record.values["layer"]), label) for record in records for label in record.blobs}


def test_pairs_are_trained_and_scored_where_the_first_solve_uses_them(searched: Any) -> None:
    search, texts, costs = searched({"kv": "0.67x"})
    first = build_library(search, texts.distill, first_variants(search))
    assert {label for _, label in trained_at(first)} == {"ffn:width=24"}
    scores = score_all(search, texts, library_of(first))
    problem = Tables(ScoreTable.of(scores.rows), costs, {"chat": 4}).problem(search.job.budget)
    (solution,) = solve_pool(problem, 1, 0.0, 60.0)
    dropped = {layer for layer, block in enumerate(architecture_of(solution.labels)) if block[0] == DROPPED}
    assert 0 < len(dropped) < 3
    records, found = add_beside(search, texts, first, scores, costs)
    assert trained_at(records) == trained_at(first) | {(layer, label) for layer in dropped for label in BESIDE}
    assert found.note.endswith(f"then {2 * len(dropped)} pairs in {len(dropped)} layer{'s' * (len(dropped) > 1)}")
    pairs = {(row["layer"], row["attention"], row["ffn"]) for row in found.rows} - {
        (row["layer"], row["attention"], row["ffn"]) for row in scores.rows
    }
    assert pairs == {(layer, DROPPED, label) for layer in dropped for label in BESIDE}
    assert [row["layer"] for row in found.rows] == sorted(row["layer"] for row in found.rows)
    # What is trained later is what would have been trained at once, and so are its scores.
    every = library_of(build_library(search, texts.distill)).digests
    assert all(every[layer][label] == digest for layer, held in library_of(records).digests.items()
               for label, digest in held.items())  # fmt: skip
    at_once = {
        one.layer: one for one in score_blocks(search, texts.score, library_of(records)) if one.block[1] in BESIDE
    }
    assert dropped == set(at_once)
    for row in found.rows:
        if (one := at_once.get(row["layer"])) is not None and (row["attention"], row["ffn"]) == one.block:
            assert row["kl_nats"] == pytest.approx(one.comparison.kl_nats, rel=1e-6)
            assert (found.scored[row["layer"], one.block] == at_once[row["layer"]].added_N).all()
    # The program now sees them.
    offered = ScoreTable.of(found.rows)
    assert all((DROPPED, label) in offered.blocks(layer) for layer in dropped for label in BESIDE)
    # A second call has nothing to do.
    before = list(search.workspace.store.list("records/"))
    again, _ = add_beside(search, texts, first, scores, costs)
    assert trained_at(again) == trained_at(records)
    assert list(search.workspace.store.list("records/")) == before


def test_where_nothing_fits_without_them_they_are_trained_everywhere(searched: Any) -> None:
    space = {"attention": ["no_op"], "ffn": [{"alone": 24}]}
    search, texts, costs = searched({"parameters": "0.55x"}, space=space)
    first = build_library(search, texts.distill, first_variants(search))
    assert first == []
    records, found = add_beside(search, texts, first, score_all(search, texts, library_of(first)), costs)
    assert trained_at(records) == {(layer, "ffn:alone=24") for layer in range(3)}
    problem = Tables(ScoreTable.of(found.rows), costs, {"chat": 4}).problem(search.job.budget)
    (solution,) = solve_pool(problem, 1, 0.0, 60.0)
    assert (DROPPED, "ffn:alone=24") in architecture_of(solution.labels)


def test_a_study_trains_those_of_the_child_that_it_knows(searched: Any) -> None:
    search, texts, costs = searched({"kv": "0.67x"})
    first = build_library(search, texts.distill, first_variants(search))
    records, _ = add_beside(search, texts, first, score_all(search, texts, library_of(first)), costs)
    layer = next(iter(sorted(place for place, label in trained_at(records) if label in BESIDE)))
    parent = ("attention:parent", "ffn:parent")
    known = tuple((DROPPED, "ffn:alone=24") if place == layer else parent for place in range(3))
    assert [bool(held) for held in variants_beside(search, known)] == [place == layer for place in range(3)]
    before = list(search.workspace.store.list("records/"))
    from contextlib import contextmanager

    @contextmanager
    def timed(name: str) -> Any:
        yield []

    child = find_child(search, texts, timed, known)
    assert child.trained[str(layer)]["variants"] == ["ffn:alone=24"]
    assert child.library.digests[layer]["ffn:alone=24"] == library_of(records).digests[layer]["ffn:alone=24"]
    assert list(search.workspace.store.list("records/")) == before
