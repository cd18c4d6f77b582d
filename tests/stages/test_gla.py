"""Gated linear attention from the job file to generation by what was exported, and what refuses to run or write it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.nas.check import check_job
from inlay.nas.errors import UserError
from inlay.nas.export.deci import check_deci
from inlay.nas.export.deci_consumers import CONSUMERS
from inlay.nas.export.gguf import check_gguf
from inlay.nas.export.hf import write_folder
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.gla_modules_inlay import StateLayer
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.solutions import blob_of_solution
from inlay.nas.tables.architecture import architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import ScoreTable, build_problem
from inlay.nas.variants import parse_variant
from inlay.solver import solve

LABEL = "attention:gla"
LOADED_ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not any(name == "inlay" or name.startswith("inlay.") for name in sys.modules)
ids = torch.arange(5, 15)[None]
print(model.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False)[0].tolist())
"""


@pytest.mark.slow
def test_from_the_job_file_to_generation(
    tiny_parent: Callable[..., Path], texts: tuple[Path, Path], make_search: Callable[..., Any], tmp_path: Path
) -> None:
    job = Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 1024},
            },
            "space": {"attention": ["gla"], "ffn": ["no_op"]},
            "distill": {"tokens": 8192, "batch_size": 4},
            "score": {"pairs": 1},
            "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 8, "generate": 4}]},
            "recover": {"tokens": 1024},
            "budget": {"kv": "0.5x"},
        }
    )
    check_job(job)
    search = make_search(job, tmp_path / "search")
    shape, ids = search.parent.shape, store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)

    # The start is better than nothing, which is 1, and training makes it better still.
    records = build_library(search, ids.distill)
    for record in records:
        result = record.values["variants"][LABEL]
        assert (result["status"], result["kept"]) == ("trained", "trained")
        assert result["loss"] < result["start_loss"] < 1
    library = library_of(records)
    rows = [one.row() for one in score_blocks(search, ids.score, library)]
    alone = [row for row in rows if (row["attention"], row["ffn"]) == (LABEL, "ffn:parent")]
    assert len(alone) == shape.num_layers
    assert all(row["kl_nats"] > 0 for row in alone)

    # Cost: the parent's numbers and those of its gates; states of two sequences, in float32 whatever the model is in.
    costs = CostTable(cost_rows(search))
    cost, parents = costs.of("chat", 0, LABEL), costs.of("chat", 0, "attention:parent")
    assert cost["parameters"] == parents["parameters"] + 16 * 32 + 16 * 16 + 16
    assert cost["kv_bytes"] == 2 * (2 * 8 * 8 + 2 * 8) * 4
    assert min(cost["prefill_ns"], cost["decode_ns"]) > 0

    problem = build_problem(ScoreTable.of(rows), costs, job.budget, {"chat": 8})
    (solution, *_) = solve(problem)
    architecture = tuple(architecture_of(solution.labels))
    assert LABEL in {attention for attention, _ in architecture}

    search.workspace.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
    child = TrainedModel(architecture, blob_of_solution(search.workspace, search.parent, architecture))
    folder = write_folder(search.workspace, search.parent, child, tmp_path / "child", "", job)
    blocks = json.loads((folder / "config.json").read_text())["blocks"]
    assert {"kind": "gla", "key_heads": 2, "rank": 16} in [block["attention"] for block in blocks]
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
    states = [layer for layer in cache.layers if isinstance(layer, StateLayer)]
    assert len(states) == sum(attention == LABEL for attention, _ in architecture)

    # The files beside the weights are enough.
    done = subprocess.run(
        [sys.executable, "-c", LOADED_ALONE, str(folder)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == cached[0].tolist()


def test_a_parent_that_has_it_already(tiny_parent: Callable[..., Path]) -> None:
    """Nothing else takes its keys for those of softmax attention; what needs no keys can still stand there."""
    shape = open_parent(tiny_parent("llama")).shape
    own = parse_variant(LABEL).entry(shape, 1)
    shape = replace(shape, blocks=tuple({**block, "attention": own} for block in shape.blocks))
    told = {
        label: parse_variant(label).problem(shape, 1)
        for label in (LABEL, "attention:kv_heads=1", "attention:heads=2", "attention:window=8", "attention:linear")
    }
    assert told == {
        LABEL: "gla is not possible: the parent's attention there has no keys and values to begin from; leave gla out",
        "attention:kv_heads=1": "1 is not possible: the parent's attention has no key/value heads; leave kv_heads out",
        "attention:heads=2": "2 is not possible: the parent's attention has no heads; leave heads out",
        "attention:window=8": "8 is not possible: the parent's attention has no keys to choose from; leave window out",
        "attention:linear": None,
    }


def test_exports_that_cannot_hold_it(tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent("llama"))
    child = [("attention:parent", "ffn:parent"), (LABEL, "ffn:parent"), ("attention:parent", "ffn:parent")]
    for consumer in CONSUMERS:
        with pytest.raises(UserError, match=r"layer 1 attention: gla \(key_heads=2, rank=16\): .* --format hf"):
            check_deci(parent, child, consumer)
    with pytest.raises(UserError, match=r"layer 1: llama.cpp has no gla attention; it runs full"):
        check_gguf(parent, child, "f16")
