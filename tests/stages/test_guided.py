"""Guided distillation: a part for every variant, the rest for those that a best solution may have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.distill import library_of, variant_tokens
from inlay.nas.stages.guided import Trained, part_ends, train_guided
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.outcome import loss_rows
from inlay.nas.stages.run import open_job_parent
from inlay.nas.tables.costs import CostTable
from inlay.nas.workspace import Workspace

STEP = 4 * 32
STEPS = 100


@pytest.fixture(scope="module")
def job(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> Job:
    return Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 2048},
            },
            "space": {
                "attention": [{"kv_heads": 1}, {"window": 8}, "linear", "no_op"],
                "ffn": [{"width": 32}, {"width": 16}, "linear"],
            },
            "distill": {"tokens": STEPS * STEP, "batch_size": 4, "guided": True},
            "score": {"pairs": 2},
            "hardware": {"scenarios": [{"name": "chat", "prefill": 8, "generate": 4}]},
            "budget": {"parameters": "0.85x"},
        }
    )


@pytest.fixture(scope="module")
def costs(job: Job, make_search: Any, tmp_path_factory: pytest.TempPathFactory) -> CostTable:
    return CostTable(cost_rows(make_search(job, tmp_path_factory.mktemp("costs") / "w.search")))


def guided(search: Search, costs: CostTable) -> tuple[Trained, Texts]:
    texts = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    return train_guided(search, texts, costs), texts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guided") / "w.search"


@pytest.fixture(scope="module")
def trained(job: Job, costs: CostTable, make_search: Any, place: Path) -> Trained:
    return guided(make_search(job, place), costs)[0]


def identities(trained: Trained) -> list[Any]:
    return [record.identity() for record in trained.records]


def test_parts_of_a_training_end_where_there_is_room_for_them() -> None:
    assert part_ends(244) == [15, 61, 244]
    assert part_ends(40) == [10, 40]
    assert part_ends(20) == [20]


def test_what_no_solution_can_have_is_left_and_told(job: Job, trained: Trained) -> None:
    rows = {(row["layer"], row["variant"]): row for row in loss_rows(trained.records, job, trained.left)}
    assert len(rows) == 3 * 6
    assert {row["tokens"] // STEP for row in rows.values()} <= {6, 25, STEPS}
    assert {place for place, row in rows.items() if row["tokens"] // STEP < STEPS} == set(trained.left)
    assert 0 < len(trained.left) < len(rows)
    for place, reason in trained.left.items():
        assert rows[place]["reason"] == reason
        assert reason.startswith(f"left after {rows[place]['tokens']:,} of {STEPS * STEP:,} tokens: with ")
        assert reason.endswith(" no best solution around the budget has it")
    spent = sum(row["tokens"] for row in rows.values())
    assert variant_tokens(trained.records, job) == spent
    assert trained.note.startswith(f"{len(rows) - len(trained.left)} to the end in ")
    assert trained.note.endswith(f", {100 * spent / (18 * STEPS * STEP):.0f} % of the tokens")
    held = library_of(trained.records)
    assert all(held.has(layer, label) for layer, label in rows), "what was left is offered all the same"


def test_a_part_goes_on_from_the_one_before(trained: Trained) -> None:
    reached: dict[tuple[int, str], float] = {}
    on = 0
    for record in trained.records:
        for label, result in record.values["variants"].items():
            place = (record.values["layer"], label)
            if place in reached:
                # The same held-out batches judge the same weights.
                assert result["start_loss"] == pytest.approx(reached[place], rel=1e-5)
                on += 1
            reached[place] = result["loss"]
    assert on > 0


@pytest.mark.slow
def test_workers_give_the_same_bits(
    job: Job, costs: CostTable, trained: Trained, tmp_path: Path, shared_ray: Any
) -> None:
    found, _ = guided(
        Search(job, Workspace(tmp_path / "w.search"), open_job_parent(job), shared_ray.cluster(), Reporter()), costs
    )
    assert identities(found) == identities(trained)
    assert found.left == trained.left


@pytest.mark.parametrize("kept", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_was_cut_short_goes_on_from_its_records(
    job: Job, costs: CostTable, trained: Trained, place: Path, tmp_path: Path, make_search: Any, kept: int
) -> None:
    shutil.copytree(place, tmp_path / "w.search")
    search = make_search(job, tmp_path / "w.search")
    held = {record.key for record in trained.records[:kept]}
    store = search.workspace.store
    for name in [*store.list("records/distill/")]:
        if store.get_json(name)["key"] not in held:
            store.delete(name)
    found, texts = guided(search, costs)
    assert identities(found) == identities(trained)
    assert found.left == trained.left
    assert not [path for path in (search.scratch / "boundaries").rglob("*") if path.is_file()], texts.distill


def test_a_training_too_short_for_parts_is_done_whole(
    job: Job, costs: CostTable, make_search: Any, tmp_path: Path
) -> None:
    short = job.model_copy(update={"distill": job.distill.model_copy(update={"tokens": 8 * STEP})})
    found, _ = guided(make_search(short, tmp_path / "w.search"), costs)
    assert (found.left, found.note) == ({}, "")
    assert variant_tokens(found.records, short) == 3 * 6 * 8 * STEP
