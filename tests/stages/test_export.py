"""The child in the workspace: under a URL the same files as in a folder, and nothing of an older one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_a_url_gets_the_files_of_a_folder(
    tmp_path: Path, tiny_parent: Callable[..., Path], texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {"distill": {"path": str(texts[0]), "sequence_length": 32}, "validate": {"path": str(texts[1])}},
            "space": {"attention": ["no_op"]},
            "budget": {"parameters": "0.9x"},
        }
    )
    parent = open_job_parent(job)
    here, there = Workspace(tmp_path / "here"), Workspace(f"memory://{tmp_path.name}/there")
    there.store.put("child/model-00001-of-00002.safetensors", b"of an older child")
    there.store.put("child/config.json", b"of an older child")
    weights = (parent.folder / "model.safetensors").read_bytes()
    evaluation: dict[str, Any] = {name: {**FIGURES, "architecture": [PARENT] * 3} for name in ("parent", "child")}
    for place in (here, there):
        model = TrainedModel((PARENT,) * 3, place.store.put_blob(weights))
        write_model_folder(place, parent, model, {**evaluation, "chosen": "child"}, job, "child")
    written = {path.name: path.read_bytes() for path in (tmp_path / "here" / "child").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "inlay_recipe.json"} <= set(written)
    assert {key.removeprefix("child/"): there.store.get(key) for key in there.store.list("child/")} == written
    assert not (tmp_path / "cache").exists(), "the weights were copied where they lie"
