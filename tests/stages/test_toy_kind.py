"""A kind that no file of the project knows: two files, and it goes through a whole search."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.nas.check import check_job
from inlay.nas.errors import UserError
from inlay.nas.export.hf import write_folder
from inlay.nas.job import Job, JobError
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.solutions import blob_of_solution
from inlay.nas.tables.architecture import architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import ScoreTable, build_problem
from inlay.nas.variants import KINDS, parse_variant
from inlay.solver import solve

LABEL = "attention:mean=4"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "toy"))
    SUBBLOCKS.register(import_module("mean_inlay").Mean())
    KINDS.register(import_module("mean_variant").MeanVariant())
    yield
    SUBBLOCKS.forget("mean")
    KINDS.forget("mean")


def values(parent: Path, texts: tuple[Path, Path], **space: Any) -> dict[str, Any]:
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 1024},
        },
        "space": space,
        "distill": {"tokens": 8192, "batch_size": 4},
        "score": {"pairs": 1},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 8, "generate": 4}]},
        "recover": {"tokens": 1024},
        "budget": {"kv": "0.5x"},
    }


def test_from_the_job_file_to_generation(
    tiny_parent: Callable[..., Path], texts: tuple[Path, Path], make_search: Callable[..., Any], tmp_path: Path
) -> None:
    job = Job.from_dict(values(tiny_parent("llama"), texts, attention=[{"mean": "4"}], ffn=["no_op"]))
    assert job.space.attention == ({"mean": 4},)
    check_job(job)
    search = make_search(job, tmp_path / "search")
    shape, ids = search.parent.shape, store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)

    # Start and training: from statistics of its own a better start than nothing (1), and training keeps the better.
    records = build_library(search, ids.distill)
    for record in records:
        result = record.values["variants"][LABEL]
        assert result["status"] == "trained"
        assert result["loss"] <= result["start_loss"] < 1
    library = library_of(records)

    # Score.
    rows = [one.row() for one in score_blocks(search, ids.score, library)]
    alone = [row for row in rows if (row["attention"], row["ffn"]) == (LABEL, "ffn:parent")]
    assert len(alone) == shape.num_layers
    assert all(row["kl_nats"] > 0 for row in alone)

    # Cost: parameters of a norm and a matrix; three inputs held for each of two sequences, in float32.
    costs = CostTable(cost_rows(search))
    cost = costs.of("chat", 0, LABEL)
    assert cost["parameters"] == 32 + 32 * 32
    assert cost["kv_bytes"] == 2 * 3 * 32 * 4
    assert cost["runtime_ns"] > 0

    # Solve: nothing else lowers the cache.
    problem = build_problem(ScoreTable.of(rows), costs, job.budget, {"chat": 8})
    (solution, *_) = solve(problem)
    architecture = tuple(architecture_of(solution.labels))
    assert LABEL in {attention for attention, _ in architecture}
    assert (
        costs.total("chat", architecture)["kv_bytes"] * 2
        <= costs.total("chat", [("attention:parent", "ffn:parent")] * shape.num_layers)["kv_bytes"]
    )

    # Export, and generation by what was exported: with a cache the same as without.
    search.workspace.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
    blob = blob_of_solution(search.workspace, search.parent, architecture)
    child = TrainedModel(architecture, blob)
    folder = write_folder(search.workspace, search.parent, child, tmp_path / "child", "", job)
    blocks = json.loads((folder / "config.json").read_text())["blocks"]
    assert {"kind": "mean", "tokens": 4} in [block["attention"] for block in blocks]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model) is InlayForCausalLM
    prompt = torch.arange(5, 15)[None]
    cached, cacheless = (
        model.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert cached.equal(cacheless)
    cache = model.new_cache()
    model(prompt, past_key_values=cache)
    held = [layer.inputs_BKD.shape for layer in cache.layers if getattr(layer, "inputs_BKD", None) is not None]
    assert held == [(1, 3, 32)] * sum(attention == LABEL for attention, _ in architecture)


def test_its_own_sentences_reach_the_user(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> None:
    parent = tiny_parent("llama")
    with pytest.raises(JobError, match=r"space.attention\[0\].mean: 1 is out of range; it must be at least 2"):
        Job.from_dict(values(parent, texts, attention=[{"mean": 1}]))
    with pytest.raises(JobError, match=r"space.attention\[0\].mean: 65 is longer than the context; give at most 64"):
        check_job(Job.from_dict(values(parent, texts, attention=[{"mean": 65}])))
    with pytest.raises(JobError, match=r"write one of \[kv_heads: 1, heads: 4, window: 128, gla, linear, no_op, mean"):
        Job.from_dict(values(parent, texts, attention=["maen"]))
    with pytest.raises(UserError, match="`mean` takes a whole number, not `x`"):
        parse_variant("attention:mean=x")
    with pytest.raises(ValueError, match="a kind of subblock named mean already"):
        SUBBLOCKS.register(import_module("mean_inlay").Mean())
