"""The block library and the scores are the same for any number of workers and however little scratch there is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inlay.cluster import Cluster, ClusterSettings, connect
from inlay.nas.job import Job
from inlay.nas.loop import spans as spans_module
from inlay.nas.loop.search import Search
from inlay.nas.loop.spans import Span, spans
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.distill import build_library, failures, library_of
from inlay.nas.stages.run import open_job_parent
from inlay.nas.stages.score import score_blocks
from inlay.nas.workspace import Workspace

Built = tuple[list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def job(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> Job:
    train, held_out = map(str, texts)
    return Job.from_dict(
        {
            "parent": str(tiny_parent("llama", num_hidden_layers=4)),
            "data": {
                "distill": {"path": train, "sequence_length": 32},
                "validate": {"path": held_out, "tokens": 1024},
            },
            "space": {
                "attention": [{"kv_heads": 1}, {"window": 8}, "linear", "no_op"],
                "ffn": [{"width": 16}, {"alone": 1.0}, "linear"],
            },
            "distill": {"tokens": 2048, "batch_size": 4},
            "recover": {"tokens": 1024},
            "budget": {"parameters": "0.9x"},
        }
    )


def build(job: Job, folder: Path, cluster: Cluster) -> Built:
    """Records of the library without what may differ, and the score table."""
    parent = open_job_parent(job)
    place = Workspace(folder)
    texts = store_texts(pack_texts(job, parent.tokenizer()), place)
    search = Search(job, place, parent, cluster, Reporter())
    records = build_library(search, texts.distill)
    assert not failures(records)
    assert (search.scratch_peak_bytes > 50_000_000) == search.cluster.started, "boundaries were made by workers"
    rows = [scored.row() for scored in score_blocks(search, texts.score, library_of(records))]
    return [record.identity() for record in records], rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two") / "w.search"


@pytest.fixture(scope="module")
def built_alone(job: Job, shared_ray: Any, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """By one worker, that nothing else uses."""
    shared_ray.end()
    with connect(ClusterSettings(workers=1)) as cluster:
        return build(job, tmp_path_factory.mktemp("one") / "w.search", cluster)


@pytest.fixture(scope="module")
def built(job: Job, folder: Path, shared_ray: Any) -> Built:
    """By two workers, which stay for what comes."""
    return build(job, folder, shared_ray.cluster())


def test_what_misses_a_blob_is_made_again_at_once(
    job: Job, built: Built, folder: Path, tmp_path: Path, shared_ray: Any
) -> None:
    shutil.copytree(folder, tmp_path / "w.search")
    store = Workspace(tmp_path / "w.search").store
    for stage, name in (("distill", "attention:linear"), ("score", "sequences")):
        key = next(key for key in store.list(f"records/{stage}/") if "layer 0002" in store.get(key).decode())
        store.delete(f"blobs/{store.get_json(key)['blobs'][name]}")
    assert build(job, tmp_path / "w.search", shared_ray.cluster()) == built
    assert store.list("blobs/") == Workspace(folder).store.list("blobs/")


def test_spans_give_the_same_bytes(
    job: Job, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_ray: Any
) -> None:
    one = 2048 * 32 * 4  # one boundary of the distillation text
    monkeypatch.setattr(spans_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * one))
    cut: list[list[Span]] = []

    def recorded(*given: Any) -> list[Span]:
        cut.append(spans(*given))
        return cut[-1]

    monkeypatch.setattr(spans_module, "spans", recorded)
    assert build(job, tmp_path / "w.search", shared_ray.cluster()) == built
    assert any(len(each) > 1 for each in cut)


def test_every_variant_beats_or_keeps_its_start(built: Built) -> None:
    for record in built[0]:
        for label, result in record["values"]["variants"].items():
            assert result["status"] == "trained", label
            assert result["loss"] <= result["start_loss"], label


def test_scores_are_those_of_replaced_blocks_alone(built: Built) -> None:
    rows = built[1]
    assert {row["layer"] for row in rows} == {0, 1, 2, 3}
    changed = [(row["attention"] != "attention:parent") + (row["ffn"] != "ffn:parent") for row in rows]
    assert set(changed) == {1, 2}
    assert all(row["kl_nats"] > 0 for row in rows)


def test_variants_that_diverge_are_failed_with_their_reason_and_not_offered(
    job: Job, tmp_path: Path, shared_ray: Any
) -> None:
    # No job file may say such a rate; a copy is not validated.
    wild = job.model_copy(update={"distill": job.distill.model_copy(update={"learning_rate": 1e30})})
    parent = open_job_parent(wild)
    place = Workspace(tmp_path / "w.search")
    texts = store_texts(pack_texts(wild, parent.tokenizer()), place)
    search = Search(wild, place, parent, shared_ray.cluster(), Reporter())
    records = build_library(search, texts.distill)
    lost = failures(records)
    assert {layer for layer, _, _ in lost} == {0, 1, 2, 3}
    assert all("not finite" in reason for _, _, reason in lost)
    rows = [scored.row() for scored in score_blocks(search, texts.score, library_of(records))]
    gone = {(layer, label) for layer, label, _ in lost}
    assert not any({(row["layer"], row["attention"]), (row["layer"], row["ffn"])} & gone for row in rows)
    assert {"attention:no_op"} <= {row["attention"] for row in rows}


@pytest.fixture(autouse=True)
def no_scratch_left(tmp_path: Path) -> Iterator[None]:
    yield
    for folder in tmp_path.rglob("boundaries"):
        assert not [path for path in folder.rglob("*") if path.is_file()]
        shutil.rmtree(folder)


@pytest.mark.slow
def test_one_worker_gives_the_same_bytes(built_alone: Built, built: Built) -> None:
    assert built_alone == built
