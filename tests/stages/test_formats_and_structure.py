"""A search that chooses the format of every subblock beside its structure, from the job to a file of mixed types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf import GGUFReader

from inlay.nas.engines.registry import ENGINES
from inlay.nas.families import open_parent
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.tables.architecture import blocks_of
from inlay.nas.variants import parse_variant
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import Workspace

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
FORMATS = ("q8_0", "q4_0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, whole_job: Callable[[], dict[str, Any]], inlay_here: Run) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    values = whole_job()
    values["space"] = {"ffn": [{"width": 128}], "formats": list(FORMATS)}
    values["score"] = {"pairs": 2}
    values["distill"] = {"tokens": "4k"}
    values["solve"] = {"pool": 2, "corrections": 0}
    values["hardware"] = {"engine": "llama.cpp", "scenarios": [{"name": "chat", "prefill": 8, "generate": 4}]}
    values["budget"] = {"weights": "0.6x"}
    values["recover"] = {"tokens": "2k", "probes": 0}
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "job.search" / "evaluation.json").read_text())
    return found


def test_every_alternative_has_a_row_in_every_format(folder: Path, trained_parent: Path) -> None:
    shape, storage = open_parent(trained_parent).shape, ENGINES["llama.cpp"].storage("f16", "cpu")
    place = Workspace(folder / "job.search")
    costs = {(row["layer"], row["variant"]): row for row in place.read_table("costs") if row["layer"] >= 0}
    bare = ("attention:parent", "ffn:parent", "ffn:width=128")
    labels = {label for own in bare for label in (own, *(f"{own}@{form}" for form in FORMATS))}
    assert {label for _, label in costs} == labels
    for (layer, label), row in costs.items():
        variant = parse_variant(label)
        assert row["weights_bytes"] == storage.weights(variant.entry(shape, layer), variant.slot, shape)
        assert row["runtime_ns"] > 0
    assert len({costs[0, f"ffn:width=128{form}"]["weights_bytes"] for form in ("", "@q8_0", "@q4_0")}) == 3


def test_scores_are_those_of_rounded_weights(folder: Path, trained_parent: Path) -> None:
    place = Workspace(folder / "job.search")
    scores = {(row["layer"], row["attention"], row["ffn"]): row["kl_nats"] for row in place.read_table("scores")}
    for layer in range(open_parent(trained_parent).shape.num_layers):
        fine, coarse = (scores[layer, f"attention:parent@{form}", "ffn:parent"] for form in FORMATS)
        assert 0 < fine < coarse
        trained = scores[layer, "attention:parent", "ffn:width=128"]
        assert abs(scores[layer, "attention:parent", "ffn:width=128@q8_0"] - trained) < trained / 4
    assert set(json.loads((folder / "job.search" / "library.json").read_text())["0"]) == {"ffn:width=128"}


def test_the_file_has_the_types_that_were_chosen(folder: Path, trained_parent: Path, inlay_here: Run) -> None:
    done = inlay_here("export", "job.search", "--format", "gguf", "-o", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures, shape = evaluation(folder), open_parent(trained_parent).shape
    chosen = figures[figures["chosen"]]
    entries = entries_of(shape, blocks_of(chosen["architecture"]))
    named = [entry.get(FORMAT, "f16") for block in entries for entry in block.values()]
    assert set(named) & set(FORMATS)
    assert chosen["weights_bytes"] <= 0.6 * figures["parent"]["weights_bytes"]
    (file,) = (folder / "out").glob("*-mixed.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert sum(int(tensor.n_bytes) for tensor in tensors.values()) == chosen["weights_bytes"]
    for layer, block in enumerate(entries):
        for slot, tensor in (("attention", "attn_q"), ("ffn", "ffn_up")):
            assert tensors[f"blk.{layer}.{tensor}.weight"].tensor_type.name.lower() == block[slot].get(FORMAT, "f16")
    card = (folder / "out" / "README.md").read_text()
    assert any(f"@{form}`" in card for form in FORMATS)
    assert float(card.split("llama.cpp's logits of this file are ")[1].split()[0]) < 5e-3


def test_the_transformers_folder_stores_every_number_alike(folder: Path, inlay_here: Run) -> None:
    done = inlay_here("export", "job.search", "-o", "hf", cwd=folder)
    assert done.returncode == 0, done.stderr
    blocks = json.loads((folder / "hf" / "config.json").read_text())["blocks"]
    assert not any(FORMAT in entry for block in blocks for entry in block.values())
