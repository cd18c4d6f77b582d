"""The child in the workspace: under a URL the same files as in a folder, and nothing of an older one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster import LockedError, Store, locked
from inlay.nas.export.folder import published
from inlay.nas.export.hf import write_model_folder
from inlay.nas.job import Job
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.stages.run import open_job_parent
from inlay.nas.workspace import Workspace

PARENT = ("attention:parent", "ffn:parent")
FIGURES = {
    "kl_nats": 0.1, "perplexity": 2.0, "top1_agreement": 0.9, "parameters": 1, "weights_bytes": 4,
    "prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0,
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "parent": {**FIGURES, "architecture": [PARENT] * 3},
    "child": {**FIGURES, "architecture": [PARENT] * 3},
    "chosen": "child",
}


@pytest.fixture
def job(tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job]) -> Job:
    return small_job_of(tiny_parent("llama"))


def test_a_url_gets_the_files_of_a_folder(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parent = open_job_parent(job)
    here, there = Workspace(tmp_path / "here"), Workspace(f"memory://{tmp_path.name}/there")
    there.store.put("child/model-00001-of-00002.safetensors", b"of an older child")
    there.store.put("child/config.json", b"of an older child")
    weights = (parent.folder / "model.safetensors").read_bytes()
    for place in (here, there):
        model = TrainedModel((PARENT,) * 3, place.store.put_blob(weights))
        write_model_folder(place, parent, model, EVALUATION, job, "child")
    written = {path.name: path.read_bytes() for path in (tmp_path / "here" / "child").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "inlay_recipe.json"} <= set(written)
    assert {key.removeprefix("child/"): there.store.get(key) for key in there.store.list("child/")} == written
    assert not (tmp_path / "cache").exists(), "the weights were copied where they lie"


def test_what_is_published_names_nothing_of_the_machine(tmp_path: Path, job: Job, texts: tuple[Path, Path]) -> None:
    values = job.to_dict()
    values["tracking"] = {"uri": "http://mlflow.internal:5000", "experiment": "secret-project"}
    values["cluster"] = {"address": "10.0.0.5:6379", "scratch": "/mnt/fast/ada"}
    values["hardware"] = {"python": "/home/ada/engine/bin/python", "costs": "/home/ada/costs.parquet"}
    job = Job.from_dict(values)
    parent, place = open_job_parent(job), Workspace(tmp_path / "here")
    model = TrainedModel((PARENT,) * 3, place.store.put_blob((parent.folder / "model.safetensors").read_bytes()))
    write_model_folder(place, parent, model, EVALUATION, job, "child")
    for name in ("inlay_recipe.json", "README.md", "config.json"):
        text = (tmp_path / "here" / "child" / name).read_text()
        for secret in ("mlflow.internal", "secret-project", "10.0.0.5", "/mnt/fast", "/home/ada", str(tmp_path.parent)):
            assert secret not in text, name
        assert str(parent.folder) not in text, name
    recipe = json.loads((tmp_path / "here" / "child" / "inlay_recipe.json").read_text())["job"]
    assert recipe["parent"] == parent.folder.name
    assert recipe["data"]["distill"]["path"] == texts[0].name
    assert recipe["distill"] == values["distill"]


def test_texts_of_several_sources_and_of_none_are_published_too(job: Job) -> None:
    values = job.to_dict()
    sources = [{"path": "/home/ada/web.txt", "weight": 2}, {"path": "inlay:pystdlib/train"}]
    values["data"] = {"distill": {"path": sources}, "validate": {"sample": 1024}}
    texts = published(Job.from_dict(values))["data"]
    assert [source["path"] for source in texts["distill"]["path"]] == ["web.txt", "inlay:pystdlib/train"]
    assert (texts["validate"]["path"], texts["validate"]["sample"]) == (None, 1024)


@pytest.mark.parametrize("url", ["{folder}/here", "memory://{folder}/there"])
def test_a_run_that_was_taken_over_commits_neither_tables_nor_documents_nor_a_child(
    tmp_path: Path, job: Job, url: str
) -> None:
    parent = open_job_parent(job)
    store = Store(url.format(folder=tmp_path))
    weights = store.put_blob((parent.folder / "model.safetensors").read_bytes())
    with locked(store, "old") as lock:
        place = Workspace(store.url, lock)
        place.write_json("run.json", {"by": "old"})
        record = {"owner": {**asdict(lock.owner), "token": "1", "name": "new"}, "lease_seconds": 90, "released": False}
        store.put_json("lock/000000002.json", record)
        for commit in (
            lambda: place.write_json("run.json", {"by": "nobody"}),
            lambda: place.write_table("pool", [{"id": 1}]),
            lambda: write_model_folder(place, parent, TrainedModel((PARENT,) * 3, weights), EVALUATION, job, "child"),
        ):
            with pytest.raises(LockedError, match="was taken over by new"):
                commit()
    assert [key for key in store.list() if not key.startswith(("lock/", "blobs/"))] == ["run.json"]
    assert store.get_json("run.json") == {"by": "old"}
