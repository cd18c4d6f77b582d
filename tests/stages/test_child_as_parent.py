"""An exported child is a parent: it opens with the layers that it has, and a search from it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from inlay.nas.check import check_job
from inlay.nas.errors import UserError
from inlay.nas.export.hf import write_folder
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.stages.distill import build_library, failures, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.plan import make_plan
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.solutions import blob_of_solution
from inlay.nas.tables.architecture import PARENT_BLOCK, architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import build_problem
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import parse_variant, variants_of
from inlay.solver import solve

ARCHITECTURE = (
    ("attention:no_op", "ffn:width=24"),
    ("attention:window=8", "ffn:no_op"),
    ("attention:linear", "ffn:linear"),
    ("attention:kv_heads=1", "ffn:parent"),
)
FULL = {"kind": "full", "kv_heads": 1}
WINDOW = {"kind": "window", "kv_heads": 2, "window": 8, "sinks": 4}
Child = tuple[Path, torch.Tensor]
LINEAR, NO_OP = {"kind": "linear"}, {"kind": "no_op"}
BLOCKS = (
    {"attention": NO_OP, "ffn": {"kind": "gated", "width": 24}},
    {"attention": WINDOW, "ffn": NO_OP},
    {"attention": LINEAR, "ffn": LINEAR},
    {"attention": FULL, "ffn": {"kind": "gated", "width": 48}},
)


def values(parent: Path, texts: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 1024},
        },
        "space": {
            "attention": [{"kv_heads": 1}, {"window": 8}, {"window": 4}, "linear", "no_op"],
            "ffn": [{"width": 0.5}, "linear", "no_op"],
        },
        "distill": {"tokens": 2048, "batch_size": 4},
        "score": {"pairs": 2},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 8, "generate": 4}]},
        "recover": {"tokens": 2048, "probes": 1},
        "budget": {"parameters": "0.8x"},
        "cluster": {"max_workers": 1},
        **changes,
    }


@pytest.fixture(scope="module")
def child(
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    make_search: Any,
) -> Child:
    """The folder of an exported child with a subblock of every kind, and the logits of the model in memory."""
    folder = tmp_path_factory.mktemp("first")
    job = Job.from_dict(values(tiny_parent("llama", num_hidden_layers=4), texts))
    search = make_search(job, folder / "search")
    ids = store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    library = library_of(build_library(search, ids.distill))
    search.workspace.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
    model = TrainedModel(ARCHITECTURE, blob_of_solution(search.workspace, search.parent, ARCHITECTURE))
    exported = write_folder(search.workspace, search.parent, model, folder / "child", "", job)
    whole = InlayForCausalLM.from_pretrained(exported)
    with torch.no_grad():
        return exported, whole(IDS).logits


IDS = torch.arange(2, 42)[None]


def test_it_opens_with_its_own_layers(child: Child) -> None:
    folder, logits = child
    parent = open_parent(folder)
    assert parent.shape.blocks == BLOCKS
    parent.check_finite()
    stored = load_file(folder / "model.safetensors")
    state = parent.ends_state()
    for layer in range(4):
        own = parent.layer_state(layer)
        assert own.keys() == {
            name.removeprefix(f"model.layers.{layer}.") for name in stored if name.startswith(f"model.layers.{layer}.")
        }
        state |= {f"model.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    assert state.keys() == stored.keys()
    assert all(state[name].equal(stored[name]) for name in state)
    model = InlayForCausalLM.from_pretrained(None, config=parent.config, state_dict=state).eval()
    with torch.no_grad():
        assert model(IDS).logits.equal(logits)


def test_variants_are_those_that_its_layers_can_take(child: Child, texts: Any) -> None:
    shape = open_parent(child[0]).shape
    space = Job.from_dict(values(child[0], texts)).space
    labels = [[variant.label for variant in variants_of(space, shape, layer)] for layer in range(4)]
    assert labels[0] == ["attention:parent", "ffn:parent", "ffn:width=16", "ffn:linear", "ffn:no_op"]
    assert labels[1] == [
        "attention:parent",
        "attention:kv_heads=1",
        "attention:window=4",
        "attention:linear",
        "attention:no_op",
        "ffn:parent",
    ]
    assert labels[2] == ["attention:parent", "attention:no_op", "ffn:parent", "ffn:no_op"]
    assert labels[3] == [
        "attention:parent",
        "attention:window=8",
        "attention:window=4",
        "attention:linear",
        "attention:no_op",
        "ffn:parent",
        "ffn:width=24",
        "ffn:linear",
        "ffn:no_op",
    ]


def test_a_second_search_from_it(child: Child, texts: Any, tmp_path: Path, make_search: Any) -> None:
    job = Job.from_dict(values(child[0], texts))
    check_job(job)
    assert make_plan(job)["parent"]["layers"] == 4
    search = make_search(job, tmp_path / "second")
    shape = search.parent.shape
    ids = store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    records = build_library(search, ids.distill)
    assert not failures(records)
    assert [len(record.values["variants"]) for record in records] == [2, 3, 5]  # nothing is left to train in layer 2
    library = library_of(records)
    rows = [one.row() for one in score_blocks(search, ids.score, library)]
    own = [row for row in rows if (row["attention"], row["ffn"]) == PARENT_BLOCK]
    assert all(row["kl_nats"] == 0 for row in own)
    costs = CostTable(cost_rows(search))
    nothing = costs.of("chat", 0, "attention:parent")
    assert nothing["parameters"] == nothing["kv_bytes"] == nothing["runtime_ns"] == 0
    total = costs.total("chat", [PARENT_BLOCK] * 4)
    assert total["parameters"] == sum(tensor.numel() for tensor in load_file(child[0] / "model.safetensors").values())
    (solution, *_) = solve(build_problem(ScoreTable.of(rows), costs, job.budget, {"chat": 8}))
    architecture = tuple(architecture_of(solution.labels))
    assert costs.total("chat", architecture)["parameters"] <= 0.8 * total["parameters"]
    # What is exported opens again: a third round could begin.
    search.workspace.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
    blob = blob_of_solution(search.workspace, search.parent, architecture)
    again = write_folder(search.workspace, search.parent, TrainedModel(architecture, blob), tmp_path / "child", "", job)
    entries = [
        {variant.slot: variant.entry(shape, layer) for variant in map(parse_variant, block)}
        for layer, block in enumerate(architecture)
    ]
    assert list(open_parent(again).shape.blocks) == entries


@pytest.mark.slow
def test_the_whole_command_from_it(child: Child, texts: Any, tmp_path: Path, inlay_command: Any) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values(child[0], texts)))
    planned = inlay_command("plan", "job.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    done = inlay_command("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert open_parent(tmp_path / "job.search" / "child").shape.num_layers == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"family": "gpt2"},
            "parent: family `gpt2` in config.json is not supported; the supported families are llama, mistral, qwen2, "
            "qwen3, mixtral, qwen3_moe, and children of other searches.",
        ),
        ({"blocks": []}, "parent: `blocks` in config.json is `[]`, but it must list one block for each layer"),
        ({"base": None}, "parent: `base` in config.json is `None`, but it must hold the sizes that the layers share"),
        (
            {"blocks": [{"attention": {"kind": "full", "kv_heads": 3}, "ffn": NO_OP}] * 4},
            "parent: `blocks` in config.json: layer 0 attention: kv_heads is 3; it must divide the 4 query heads; "
            "export the child again.",
        ),
    ],
)
def test_a_damaged_child(child: Child, tmp_path: Path, change: Any, sentence: str) -> None:
    shutil.copytree(child[0], tmp_path / "child")
    place = tmp_path / "child" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises(UserError) as caught:
        open_parent(tmp_path / "child")
    assert str(caught.value).startswith(sentence)
