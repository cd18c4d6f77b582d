"""A model that is stored as several blobs is read, exported and kept as one of a single blob is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inlay.cluster import Store
from inlay.cluster.errors import StoreError
from inlay.distill.tensor_files import Rows
from inlay.nas.cli import main
from inlay.nas.export.hf import write_model_folder
from inlay.nas.job import Job
from inlay.nas.pieces.assembled import StoredModel, TrainedModel, build_stored
from inlay.nas.pieces.model_files import ModelFiles, store_tensors
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.stages.run import open_job_parent
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.workspace import Workspace

ARCHITECTURE = (PARENT_BLOCK,) * 3
CPU = torch.device("cpu")
FIGURES = {
    "kl_nats": 0.1, "perplexity": 2.0, "top1_agreement": 0.9, "parameters": 1, "weights_bytes": 4,
    "prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0, "architecture": ARCHITECTURE,
}  # fmt: skip


@pytest.fixture
def job(tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job]) -> Job:
    return small_job_of(tiny_parent("llama"))


def stored(store: Store, state: dict[str, torch.Tensor], most_bytes: int) -> str:
    rows = {name: Rows(tuple(own.shape), own.dtype, own.clone) for name, own in state.items()}
    return store_tensors(store, rows, CPU, most_bytes=most_bytes)


@pytest.mark.parametrize("url", ["{folder}/here", "memory://{folder}/there"])
def test_several_blobs_are_one_model(
    url: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parent = open_job_parent(job)
    place = Workspace(url.format(folder=tmp_path if url.startswith("{") else tmp_path.name))
    place.claim("0" * 64, "parent")
    state = load_file(parent.folder / "model.safetensors")
    model = TrainedModel(ARCHITECTURE, stored(place.store, state, 20_000))
    files = ModelFiles(place.store, model.blob)
    assert len(files.in_folder) > 3
    assert files.keys() == state.keys()
    assert all(torch.equal(files[name], own) and files[name].dtype is own.dtype for name, own in state.items())
    assert files.file_bytes >= sum(own.nbytes for own in state.values())

    source = WorkerSource(parent, Library({}), place.store, torch.float32, CPU)
    built = build_stored(StoredModel(source, model)).state_dict()
    assert all(torch.equal(built[name], own.float()) for name, own in state.items())

    evaluation: dict[str, Any] = {"parent": FIGURES, "child": FIGURES, "chosen": "child"}
    write_model_folder(place, parent, model, evaluation, job, "child")
    folder = tmp_path / "child"
    for key in place.store.list("child/"):
        (folder / key.removeprefix("child/")).parent.mkdir(exist_ok=True)
        (folder / key.removeprefix("child/")).write_bytes(place.store.get(key))
    assert len(list(folder.glob("model-*.safetensors"))) == len(files.in_folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], own) for name, own in state.items())

    place.write_json("run.json", {"models": {"child": model.told}})
    orphan = place.store.put_blob(b"orphan")
    assert main(["clean", place.url, "--yes"]) == 0
    capsys.readouterr()
    assert not place.store.has_blob(orphan)
    assert all(map(place.store.has_blob, [model.blob, *files.in_folder.values()]))


def test_what_fits_into_one_blob_is_one(tmp_path: Path) -> None:
    store, state = Store(tmp_path), {"b": torch.ones(3, 4), "a": torch.zeros(2).bfloat16()}
    digest = stored(store, state, 1_000)
    assert store.list("blobs/") == [f"blobs/{digest}"]
    assert load_file(store.blob_path(digest)).keys() == state.keys()
    assert ModelFiles(store, digest).index == {}


def test_an_index_of_another_version_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(json.dumps({"schema": 7}).encode())
    with pytest.raises(StoreError, match=rf"the index {digest} has schema 7; this version reads 1"):
        ModelFiles(store, digest)
