"""Recovery of a child whose subblocks have formats: trained through its rounding, and stored as it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inlay.cluster import Record
from inlay.distill.judge import Judge
from inlay.distill.parallel import Ranks
from inlay.distill.settings import GlobalSettings
from inlay.nas.formats import Format
from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.tensors import packed
from inlay.nas.job import Job
from inlay.nas.loop.search import Search, SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import assembled_models, held_out_for, recover_models
from inlay.nas.loop.true_kl import true_scores_of_models
from inlay.nas.pieces.assembled import StoredModel, TrainedModel, build_stored, build_whole
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.stored_rows import stored_rows
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.training import held_out_of
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.calibrate import inputs_of
from inlay.nas.stages.run import open_job_parent
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks
from inlay.nas.workspace import Workspace

ROUNDED = (
    ("attention:parent@q4_0", "ffn:parent@q4_0"),
    ("attention:parent", "ffn:parent@q5_0"),
    ("attention:no_op", "ffn:parent@q4_0"),
    ("attention:parent", "ffn:parent"),
    ("attention:parent@q8_0", "ffn:parent", "ends:parent@q8_0"),
)
"""The ffn's down projections, whose rows are no multiple of 32, are stored in f16."""


@pytest.fixture
def job(trained_parent: Path, whole_job: Callable[[], dict[str, Any]]) -> Callable[..., Job]:
    def make(**recover: Any) -> Job:
        values = whole_job()
        values["space"] = {"attention": ["no_op"], "formats": ["q8_0", "q5_0", "q4_0"]}
        values["hardware"] = {"engine": "llama.cpp", "scenarios": [{"name": "chat", "prefill": 8, "generate": 4}]}
        values["budget"] = {"weights": "0.6x"}
        values["recover"] = {"tokens": "8k", "learning_rate": 3e-4, "rate": "pinned", **recover}
        return Job.from_dict(values)

    return make


@pytest.fixture
def search(make_search: Callable[[Job, Path], SmallSearch], job: Callable[..., Job], tmp_path: Path) -> SmallSearch:
    return begun(make_search(job(), tmp_path / "w.search"))


def begun(search: SmallSearch) -> SmallSearch:
    search.inputs = inputs_of(search, texts_of(search).distill)
    return search


def texts_of(search: Search) -> Texts:
    return store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)


def recovered(search: Search, architecture: Blocks = ROUNDED) -> Record:
    return recover_models(search, texts_of(search), Library({}), {"child": architecture})["child"]


def form_of(name: str) -> Format:
    """Of a matrix that has one."""
    layer = name.removeprefix("model.layers.")[0]
    return GGUF["q5_0" if layer == "1" else "q4_0" if layer in "02" else "q8_0"]


def test_what_was_trained_is_what_is_judged_stored_and_written(search: SmallSearch) -> None:
    record, texts = recovered(search), texts_of(search)
    model = TrainedModel.of(ROUNDED, record.blobs)
    assert record.values["improved"]
    before = assembled_models(search, Library({}), {"before": ROUNDED})["before"]
    assert before.packed == ""
    kl = {
        name: found.kl_nats
        for name, found in true_scores_of_models(search, texts.score, {"before": before, "after": model}).items()
    }
    assert kl["after"] < kl["before"]

    store = search.workspace.store
    numbers, rows = load_file(store.blob_path(model.blob)), load_file(store.blob_path(model.packed))
    whole = build_stored(StoredModel(worker_source({**search.base, "store": store.url}, Library({})), model))
    file = stored_rows(store, search.parent.shape, model, search.inputs)
    for name, own in rows.items():
        form, width = form_of(name), numbers[name].shape[1]
        computed = torch.from_numpy(form.unpack(own.numpy(), width).copy())
        assert torch.equal(whole.get_parameter(name), computed), name
        torch.testing.assert_close(numbers[name].float(), computed, rtol=1e-2, atol=1e-6)
        assert np.array_equal(file(name, form), own.numpy())
    down = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(file(down, GGUF["f16"]), packed(numbers[down], GGUF["f16"]))
    queries, values = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight")
    assert queries in rows
    assert values not in rows
    assert down not in rows


@pytest.mark.slow
def test_nothing_is_fitted_anew_where_no_step_made_it_better(
    make_search: Callable[[Job, Path], SmallSearch], job: Callable[..., Job], tmp_path: Path
) -> None:
    search = begun(make_search(job(learning_rate=1.0), tmp_path / "w.search"))
    record, store = recovered(search), search.workspace.store
    assert not record.values["improved"]
    rows, told = load_file(store.blob_path(record.blobs["packed"])), TrainedModel.of(ROUNDED, record.blobs)
    assembled = assembled_models(search, Library({}), {"child": ROUNDED})["child"]
    fitted = stored_rows(store, search.parent.shape, assembled, search.inputs)
    for name in rows:
        assert np.array_equal(rows[name].numpy(), fitted(name, form_of(name))), name
    scores = true_scores_of_models(search, texts_of(search).score, {"before": assembled, "after": told})
    assert scores["after"].kl_nats == pytest.approx(scores["before"].kl_nats, rel=1e-4)


def test_where_only_what_replaces_is_trained_the_rest_keeps_its_codes(
    make_search: Callable[[Job, Path], SmallSearch], job: Callable[..., Job], tmp_path: Path
) -> None:
    search = begun(make_search(job(train="replaced"), tmp_path / "w.search"))
    record, store = recovered(search), search.workspace.store
    rows = load_file(store.blob_path(record.blobs["packed"]))
    assembled = assembled_models(search, Library({}), {"child": ROUNDED})["child"]
    fitted = stored_rows(store, search.parent.shape, assembled, search.inputs)
    for name in rows:
        assert np.array_equal(rows[name].numpy(), fitted(name, form_of(name))), name
    assert record.values["tokens"] == 0  # a no-op has no weights


def test_a_child_without_formats_is_trained_as_it_is(search: SmallSearch) -> None:
    bare = tuple((attention.split("@")[0], ffn.split("@")[0]) for attention, ffn, *_ in ROUNDED)
    assert set(recovered(search, bare).blobs) == {"model"}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_store_the_codes_that_they_trained(
    sharding: str,
    make_search: Callable[[Job, Path], SmallSearch],
    job: Callable[..., Job],
    shared_ray: Any,
    tmp_path: Path,
) -> None:
    """Close to what one process makes, and judged as it is stored the child has the KL that its training ended with."""
    # Of as many sequences a step: by itself one process would take one.
    search = begun(make_search(job(batch_size=2), tmp_path / "w.search"))
    place, both = Workspace(tmp_path / "ranks.search"), job(batch_size=2, workers=2, sharding=sharding)
    together = Search(both, place, open_job_parent(both), shared_ray.cluster(), Reporter())
    texts = texts_of(together)
    together.inputs = inputs_of(together, texts.distill)
    alone, record = recovered(search), recovered(together)
    assert record.values["improved"]
    assert record.values["best_kl_nats"] == pytest.approx(alone.values["best_kl_nats"], rel=0.02)
    stored = [dict(load_file(each.workspace.store.blob_path(own.blobs["packed"])))
              for each, own in ((search, alone), (together, record))]  # fmt: skip
    assert stored[0].keys() == stored[1].keys()
    other = sum(int((stored[0][name] != stored[1][name]).sum()) for name in stored[0])
    assert other < 0.05 * sum(rows.numel() for rows in stored[0].values())

    source = worker_source({**together.base, "store": place.store.url}, Library({}))
    parent = build_whole(source, (PARENT_BLOCK,) * len(ROUNDED), torch.float32)
    child = build_stored(StoredModel(source, TrainedModel.of(ROUNDED, record.blobs)))
    judged = held_out_of(source, {"held_out": held_out_for(both, texts, both.recover.tokens)})
    found = Judge(parent, child, judged, GlobalSettings(steps=1), Ranks()).kl_nats()
    assert found == pytest.approx(record.values["best_kl_nats"], rel=1e-3)  # 16 bits are rounded when they are read
