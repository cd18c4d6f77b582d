"""`heads` and two kinds in one slot through the pieces of a search: trained, scored, measured, chosen, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from inlay.nas.check import check_job
from inlay.nas.export.hf import write_folder
from inlay.nas.job import Job
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.solutions import blob_of_solution
from inlay.nas.tables.architecture import architecture_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import ScoreTable, build_problem
from inlay.solver import solve

HEADS, BOTH = "attention:heads=2", "attention:kv_heads=1+window=8"


def test_from_the_job_file_to_generation(
    tiny_parent: Callable[..., Path], texts: tuple[Path, Path], make_search: Callable[..., Any], tmp_path: Path
) -> None:
    job = Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 512},
            },
            "space": {"attention": [{"heads": 2}, {"kv_heads": 1, "window": 8}]},
            "distill": {"tokens": 2048, "batch_size": 4},
            "score": {"pairs": 0},
            "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 28, "generate": 4}]},
            "recover": {"tokens": 0},
            "budget": {"kv": "0.3x"},
        }
    )
    check_job(job)
    search = make_search(job, tmp_path / "search")
    shape, ids = search.parent.shape, store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    records = build_library(search, ids.distill)
    for record in records:
        for label in (HEADS, BOTH):
            result = record.values["variants"][label]
            assert result["status"] == "trained"
            assert result["loss"] <= result["start_loss"] < 1, "better than nothing from the start"
    library = library_of(records)
    rows = [one.row() for one in score_blocks(search, ids.score, library)]
    assert {row["attention"] for row in rows} >= {HEADS, BOTH}

    # A head is 8 wide; keys and values of two sequences, in float32.
    costs = CostTable(cost_rows(search))
    assert costs.of("chat", 0, HEADS)["parameters"] == 32 + 2 * 16 * 32 + 2 * 8 * 32
    assert costs.of("chat", 0, HEADS)["kv_bytes"] == 2 * 2 * 1 * 32 * 8 * 4
    assert costs.of("chat", 0, BOTH)["parameters"] == 32 + 2 * 32 * 32 + 2 * 8 * 32
    assert costs.of("chat", 0, BOTH)["kv_bytes"] == 2 * 2 * 1 * (8 + 4) * 8 * 4

    # A half and three sixteenths of the parent's cache: less than 0.3 of it takes both kinds, or the second alone.
    (solution, *_) = solve(build_problem(ScoreTable.of(rows), costs, job.budget, {"chat": 32}))
    architecture = tuple(architecture_of(solution.labels))
    assert BOTH in {attention for attention, _ in architecture}

    search.workspace.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
    architecture = ((HEADS, "ffn:parent"), (BOTH, "ffn:parent"), ("attention:parent", "ffn:parent"))
    child = TrainedModel(architecture, blob_of_solution(search.workspace, search.parent, architecture))
    folder = write_folder(search.workspace, search.parent, child, tmp_path / "child", "", job)
    blocks = json.loads((folder / "config.json").read_text())["blocks"]
    assert [block["attention"] for block in blocks] == [
        {"kind": "full", "kv_heads": 1, "heads": 2},
        {"kind": "window", "kv_heads": 1, "window": 8, "sinks": 4},
        shape.parent_entry(2, "attention"),
    ]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.arange(5, 25)[None]
    cached, cacheless = (
        model.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert cached.equal(cacheless)
