"""A search for formats alone, without training, from the job to a file of mixed types; test_formats_and_structure.py
chooses structure beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from inlay.nas.engines.gguf.packing import pack
from inlay.nas.engines.registry import ENGINES
from inlay.nas.families import Parent, layer_prefix, open_parent
from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.tensors import packed
from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.together import answer_of
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.matrix_inputs import MatrixInputs
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.stages.calibrate import inputs_of
from inlay.nas.stages.distill import build_library
from inlay.nas.stages.estimates import CHECKED
from inlay.nas.stages.presets import has_presets, preset_quality_question, preset_rows, presets_question
from inlay.nas.stages.recover import advice
from inlay.nas.stages.score import score_blocks
from inlay.nas.tables.architecture import blocks_of
from inlay.nas.workspace import Workspace

Run = Callable[..., Any]
FORMATS = ("q8_0", "q4_0")


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "job.search" / "evaluation.json").read_text())
    return found


@pytest.fixture(scope="module")
def untrained(
    tmp_path_factory: pytest.TempPathFactory, whole_job: Callable[[], dict[str, Any]], inlay_here: Run
) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    values = whole_job()
    values["space"] = {"formats": list(FORMATS)}
    values["distill"] = values["recover"] = {"tokens": 0}
    values["solve"] = {"pool": 2, "corrections": 1}
    values["hardware"] = {"engine": "llama.cpp", "scenarios": [{"name": "chat", "prefill": 8, "generate": 4}]}
    values["budget"] = {"weights": "0.45x"}
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "told").write_text(done.stderr)
    return folder


def test_a_search_without_training_ends_in_a_measured_file(untrained: Path, inlay_here: Run) -> None:
    figures = evaluation(untrained)
    child = figures["child"]
    assert figures["chosen"] == "child"
    assert child["weights_bytes"] <= 0.45 * figures["parent"]["weights_bytes"]
    assert 0 < child["kl_nats"] == pytest.approx(child["before_recover"])
    assert child["times"] == "measured"
    assert "depth" not in figures
    run = json.loads((untrained / "job.search" / "run.json").read_text())
    pieces = {stage["name"]: stage["pieces"] for stage in run["stages"]}
    assert pieces["distill"] == 0
    assert (untrained / "told").read_text().count("nothing to train") == 2
    assert {row["probe_kl_nats"] for row in Workspace(untrained / "job.search").read_table("pool")} == {None}
    done = inlay_here("export", "job.search", "--format", "gguf", "-o", "out", cwd=untrained)
    assert done.returncode == 0, done.stderr
    (file,) = (untrained / "out").glob("*-mixed.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert sum(int(tensor.n_bytes) for tensor in tensors.values()) == child["weights_bytes"]
    chosen = child["architecture"][-1][2].removeprefix("ends:parent@")
    assert tensors["token_embd.weight"].tensor_type.name.lower() == chosen


def test_embedding_and_head_are_a_choice_with_exact_bytes_and_a_score(untrained: Path, trained_parent: Path) -> None:
    place, shape = Workspace(untrained / "job.search"), open_parent(trained_parent).shape
    storage = ENGINES["llama.cpp"].storage("f16", "cpu")
    costs = {row["variant"]: row for row in place.read_table("costs") if row["layer"] < 0}
    assert set(costs) == {"ends", *(f"ends:parent@{form}" for form in FORMATS)}
    for form in FORMATS:
        assert costs[f"ends:parent@{form}"]["weights_bytes"] == storage.ends(shape, form) < storage.ends(shape)
        assert costs[f"ends:parent@{form}"]["runtime_ns"] > 0
    fine, coarse = (row["kl_nats"] for row in place.read_table("scores") if row["layer"] < 0)
    assert 0 < fine < coarse


def test_estimates_rank_as_true_scores_do(
    untrained: Path, make_search: Callable[[Job, Path], SmallSearch], tmp_path: Path
) -> None:
    place = Workspace(untrained / "job.search")
    rows = [row for row in place.read_table("scores") if row["layer"] >= 0]
    assert sum(row["standard_error"] is not None for row in rows) == CHECKED
    job = Job.from_dict(yaml.safe_load((untrained / "job.yaml").read_text()))
    search = make_search(job, tmp_path / "w.search")
    stored = store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    told, search.inputs = stored.score, inputs_of(search, stored.distill)
    own = [("attention:parent", "ffn:parent")] * search.parent.shape.num_layers
    changed = [
        tuple((row["attention"], row["ffn"]) if layer == row["layer"] else block for layer, block in enumerate(own))
        for row in rows
    ]
    true = [one.kl_nats for one in true_scores(search, told, Library({}), changed)]
    estimated = [row["estimated_nats"] for row in rows]
    ranks = np.argsort(np.argsort([true, estimated]))
    assert np.corrcoef(ranks)[0, 1] > 0.9


def test_llama_cpps_presets_are_measured_beside_the_parent(
    make_search: Callable[[Job, Path], SmallSearch],
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    parent = tiny_parent("llama", intermediate_size=256)
    search = make_search(Job.from_dict(formats_alone(parent, texts)), tmp_path / "w.search")
    stored = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    assert has_presets(search)
    search.inputs = inputs_of(search, stored.distill)
    made = answer_of(search, presets_question(search), "", "pieces")
    presets = preset_rows(made, answer_of(search, preset_quality_question(search, stored.report, made), "", "pieces"))
    assert list(presets) == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M"]
    assert 0 < presets["Q8_0"]["kl_nats"] < presets["Q4_0"]["kl_nats"]
    shape = search.parent.shape
    assert presets["Q8_0"]["weights_bytes"] == pack(shape, shape.blocks, "q8_0").weights_bytes
    for preset in presets.values():
        assert preset["weights_bytes"] < preset["file_bytes"]
        assert preset["runtime_ratio"] > 0


def test_where_llama_cpp_cannot_quantise_there_are_no_presets(untrained: Path) -> None:
    assert "presets" not in evaluation(untrained)


def test_what_is_judged_and_written_is_fitted_to_what_the_parent_reads(untrained: Path, trained_parent: Path) -> None:
    place, parent = Workspace(untrained / "job.search"), open_parent(trained_parent)
    digest = place.read_json("inputs.json")
    told = MatrixInputs.of(place.store, digest)
    name = "model.layers.1.mlp.down_proj.weight"
    texts = place.read_json("texts.json")
    ids = torch.from_numpy(np.load(place.store.blob_path(texts["distill"]["digest"]))).long()[:64]
    seen: list[torch.Tensor] = []
    model = whole(parent)
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(ids)
    rows_ND = seen[0].flatten(0, -2)
    own = told.get(name, rows_ND.shape[1])
    assert own is not None
    torch.testing.assert_close(own.gram_CC, rows_ND.T @ rows_ND / len(rows_ND), rtol=1e-3, atol=1e-4)
    assert told.get(name, 7) is None
    queries, keys = (told.places[f"model.layers.0.self_attn.{each}_proj.weight"] for each in "qk")
    assert queries == keys
    (file,) = (untrained / "out").glob("*-mixed.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    architecture = blocks_of(evaluation(untrained)["child"]["architecture"])
    layer = next(index for index, block in enumerate(architecture) if block[1].endswith("q4_0"))
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    form, weights = GGUF["q4_0"], parent.tensor(name).float()
    expected = packed(weights, form, told.get(name, weights.shape[1]))
    stored = np.asarray(tensors[f"blk.{layer}.ffn_up.weight"].data).view(np.uint8).reshape(expected.shape)
    assert (stored == expected).all()
    assert (stored != packed(weights, form)).any()
    source = WorkerSource(parent, Library({}), place.store, torch.float32, torch.device("cpu"), digest)
    judged = source.subblock(layer, "ffn", "ffn:parent@q4_0")
    assert judged is not None
    assert (judged.mlp.up_proj.weight.numpy() == form.unpack(expected, weights.shape[1])).all()


def test_the_plan_of_a_search_without_training_has_none(untrained: Path, inlay_here: Run) -> None:
    done = inlay_here("plan", "job.yaml", "--json", cwd=untrained)
    stages = {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}
    for name in ("distill", "recover"):
        assert (stages[name]["pieces"], stages[name]["seconds"], stages[name]["what"]) == (0, 0, "nothing to train")


def test_the_report_of_a_search_without_training(untrained: Path, inlay_here: Run) -> None:
    done = inlay_here("report", "job.search", cwd=untrained)
    assert done.returncode == 0, done.stderr


def test_formats_alone_train_nothing_and_score_what_will_run(
    make_search: Callable[[Job, Path], SmallSearch],
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    search = make_search(Job.from_dict(formats_alone(tiny_parent("llama"), texts)), tmp_path / "w.search")
    stored = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    assert build_library(search, stored.distill) == []
    assert not search.scratch.exists()
    scores = {(one.layer, one.block): one.comparison.kl_nats for one in score_blocks(search, stored.score, Library({}))}
    ids = torch.from_numpy(np.load(search.workspace.store.blob_path(stored.score.digest))).long()
    with torch.inference_mode():
        own, other = whole(search.parent)(ids).logits, rounded_ffn(search.parent, layer=1)(ids).logits
    p, q = (torch.log_softmax(logits[:, :-1].double(), -1) for logits in (own, other))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert expected > 0
    assert scores[1, ("attention:parent", "ffn:parent@q4_0")] == pytest.approx(expected, rel=1e-3)


def formats_alone(parent: Path, texts: tuple[Path, Path]) -> dict[str, Any]:
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 512},
        },
        "space": {"formats": ["q4_0"]},
        "score": {"pairs": 0},
        "hardware": {"engine": "llama.cpp", "scenarios": [{"prefill": 16, "generate": 8}]},
        "budget": {"weights": "0.9x"},
    }


def test_no_advice_is_given_on_weights_that_are_the_parents_own() -> None:
    told = {"improved": False, "learning_rate": 3e-4, "start_kl_nats": 0.0, "tokens": 1024}
    assert advice("child", told, 3e-4) == ""
    assert "no step at a rate of 0.0003 made child better" in advice("child", {**told, "start_kl_nats": 0.1}, 3e-4)
    assert advice("child", {**told, "start_kl_nats": 0.1, "tokens": 0}, 3e-4) == ""  # nothing of it was to be trained


def whole(parent: Parent) -> Any:
    state = dict(parent.ends_state())
    for layer in range(parent.shape.num_layers):
        state |= {layer_prefix(layer) + name: tensor for name, tensor in parent.layer_state(layer).items()}
    model: Any = InlayForCausalLM(parent.config)
    model.load_state_dict(state, strict=False)
    model.float().eval().tie_weights()
    return model


def rounded_ffn(parent: Parent, layer: int) -> Any:
    """The parent with one ffn as the package gguf reads it back; rows that are not whole blocks are in f16."""
    model = whole(parent)
    for linear in model.model.layers[layer].mlp.children():
        if isinstance(linear, torch.nn.Linear):
            numbers = linear.weight.detach().numpy()
            kind = GGMLQuantizationType.F16 if numbers.shape[1] % 32 else GGMLQuantizationType.Q4_0
            linear.weight = torch.nn.Parameter(torch.tensor(dequantize(quantize(numbers, kind), kind)))
    return model
