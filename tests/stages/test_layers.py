"""Runs of neighbouring layers that become one: trained, scored, costed and chosen as one choice over several layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from inlay.nas.export.deci import check_deci
from inlay.nas.export.gguf import check_gguf
from inlay.nas.export.hf import write_folder
from inlay.nas.families import open_parent
from inlay.nas.job import Job, Space
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.assembled import TrainedModel, build_whole
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.assemble import assemble
from inlay.nas.stages.beside import add_beside, first_variants
from inlay.nas.stages.distill import build_library, layer_variants, library_of
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.score import placed
from inlay.nas.stages.scoring import score_all
from inlay.nas.stages.solutions import blob_of_solution
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, architecture_of, choice_label, choices_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import parse_variant, space_problems

NOTHING = ("attention:no_op", "ffn:no_op")
MERGED, FUSED = ("attention:merge=2", "ffn:merge=2"), ("attention:fuse=2", "ffn:fuse=2")
LABELS = {*MERGED, *FUSED}


def job_of(parent: Path, texts: tuple[Path, Path], **changes: Any) -> Job:
    return Job.from_dict(
        {
            "parent": str(parent),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 1024},
            },
            "space": {"ffn": [{"width": 24}], "layers": [{"merge": 2}, {"fuse": 2}]},
            "distill": {"tokens": 1024, "batch_size": 4},
            "solve": {"pool": 1},
            "recover": {"tokens": 1024, "probes": 1},
            "hardware": {"scenarios": [{"name": "chat", "prefill": 8, "generate": 4}]},
            "budget": {"kv": "0.67x"},
            **changes,
        }
    )


def test_runs_are_trained_scored_and_chosen(
    tiny_parent: Callable[..., Path], texts: Any, make_search: Any, tmp_path: Path
) -> None:
    search = make_search(job_of(tiny_parent("llama"), texts), tmp_path / "search")
    found = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    costs = CostTable(cost_rows(search))
    first = build_library(search, found.distill, first_variants(search))
    assert {label for record in first for label in record.blobs} == {"ffn:width=24"}
    records, scores = add_beside(search, found, first, score_all(search, found, library_of(first)), costs)
    library = library_of(records)
    # Of three layers two runs begin in the first two; the last has none.
    assert [LABELS & set(library.digests[layer]) for layer in range(3)] == [LABELS, LABELS, set()]
    assert [{v.label for v in layer_variants(search, layer)} & LABELS for layer in range(3)] == [LABELS, LABELS, set()]
    for record in records:
        for label in LABELS & set(record.values["variants"]):
            told = record.values["variants"][label]
            assert told["status"] == "trained"
            assert told["loss"] <= told["start_loss"]
    table = ScoreTable.of(scores.rows)
    assert {MERGED, FUSED} <= set(table.blocks(0)) & set(table.blocks(1))
    assert MERGED not in table.blocks(2)
    # The score is the true KL of the model in which the second layer is gone.
    architectures = [placed(3, layer, block) for layer in range(2) for block in (MERGED, FUSED)]
    assert architectures[0] == (MERGED, NOTHING, PARENT_BLOCK)
    for architecture, true in zip(architectures, true_scores(search, found.score, library, architectures), strict=True):
        assert table.predict(architecture) == pytest.approx(true.kl_nats, rel=1e-5)
    # A third of the cache has to go: a run is what the space has for that, and every choice of the program is exact.
    problem = Tables(table, costs, {"chat": 4}).problem(search.job.budget)
    (solution,) = solve_pool(problem, 1, 0.0, 60.0)
    chosen = architecture_of(solution.labels)
    assert solution.status == "optimal"
    assert costs.total("chat", chosen)["kv_bytes"] == solution.totals["kv"]
    assert costs.total("chat", chosen)["weights_bytes"] == solution.totals["weights"]
    assert solution.objective == least_of(problem, 3)
    assert any(block in (MERGED, FUSED) for _, block in choices_of(chosen))
    # What was trained once is not trained again.
    before = list(search.workspace.store.list("records/"))
    add_beside(search, found, first, score_all(search, found, library_of(first)), costs)
    assert list(search.workspace.store.list("records/")) == before
    # The closed loop keeps one, and looks around it.
    assembled = assemble(search, found, library, Tables(table, costs, {"chat": 4}), scores.scored)
    kept = [block for _, block in choices_of(assembled.kept.architecture)]
    assert set(kept) & {MERGED, FUSED}
    assert {candidate.origin for candidate in assembled.pool.candidates} >= {"pool", "swap", "uniform", "depth"}
    assert assembled.kept.true.kl_nats < assembled.baselines["depth"].comparison.kl_nats
    search.workspace.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
    for block in (MERGED, FUSED):
        assert_exported(search, library, placed(3, 0, block), tmp_path / choice_label(block))


def assert_exported(search: Any, library: Library, child: Blocks, folder: Path) -> None:
    """The child is a model of plain layers, which every form of export can hold, and a parent like any other."""
    stored = TrainedModel(child, blob_of_solution(search.workspace, search.parent, child))
    write_folder(search.workspace, search.parent, stored, folder, "", search.job)
    ids_BS = torch.arange(5, 15)[None]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    source = worker_source(search.base | {"store": search.workspace.url}, library)
    with torch.no_grad():
        assert model(ids_BS).logits.equal(build_whole(source, child, torch.float32).eval()(ids_BS).logits)
    shape = open_parent(folder).shape
    assert [block["attention"]["kind"] for block in shape.blocks] == ["full", "no_op", "full"]
    assert shape.blocks[0]["ffn"] == parse_variant(child[0][1]).entry(search.parent.shape, 0)
    assert not space_problems(Space(ffn=[{"width": 8}]), shape)
    check_gguf(search.parent, list(child), "f16")
    check_deci(search.parent, list(child), "vllm")


def least_of(problem: Any, num_layers: int) -> int:
    """The least objective of all ways to fill the layers within the limits."""
    (limit,) = problem.limits
    column = problem.cost_names.index(limit.name)

    def ways(layer: int) -> Any:
        if layer == num_layers:
            yield (0, 0)
        for choice in problem.layers[layer] if layer < num_layers else ():
            for score, cost in ways(layer + choice.layers):
                yield (score + choice.score, cost + choice.costs[column])

    return min(s for s, cost in ways(0) if cost + problem.base_costs[column] <= limit.upper)


@pytest.mark.slow
def test_a_whole_search_keeps_a_run(whole_job: Callable[[], dict[str, Any]], inlay_here: Any, tmp_path: Path) -> None:
    """From the job file to the exported child, recovery and local search among it, and a further solve."""
    values = whole_job()
    values["space"] = {"layers": [{"merge": 2}, {"fuse": 2}]}
    values["budget"] = {"kv": "0.7x"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = yaml.safe_load((tmp_path / "job.search" / "solution.json").read_text())["architecture"]
    chosen = [block for _, block in choices_of(tuple(map(tuple, kept)))]
    assert set(chosen) & {MERGED, FUSED}
    assert open_parent(tmp_path / "job.search" / "child").shape.num_layers == len(kept)
    done = inlay_here("solve", "job.search", "--limit", "kv=0.7x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = inlay_here("report", "job.search", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
