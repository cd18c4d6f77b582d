"""evaluate: child, parent and baselines side by side, on text that nothing has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.sweep import sweep
from inlay.nas.hardware.costs import CostTable
from inlay.nas.job.sections import Scenario
from inlay.nas.stages.boundaries import micro_batch, worker_source
from inlay.nas.stages.candidates import Blocks, Measured, excess_of, identify, within
from inlay.nas.stages.comparison import Comparison, compare, summaries
from inlay.nas.stages.judging import judged_times, times_are_given
from inlay.nas.stages.search import Search, Stage
from inlay.nas.stages.source import Library
from inlay.nas.stages.text import Ids, load_ids
from inlay.nas.stages.whole import StoredModel, entries_of
from inlay.nas.tables import PARENT_BLOCK
from inlay.nas.variants import kv_bytes


@dataclass(frozen=True)
class Recovered:
    """An architecture with its trained weights."""

    architecture: Blocks
    blob: str


def true_scores_of_models(search: Search, ids: Ids, models: Mapping[str, Recovered]) -> dict[str, Comparison]:
    """Each stored model against the parent on a text, by name."""
    distinct = {model.blob: model for model in models.values()}
    pieces = []
    for blob, model in distinct.items():
        for shard, rows in enumerate(ids.shards):
            depends = {
                "ids": ids.digest,
                "rows": list(rows),
                "blob": blob,
                "architecture": [list(b) for b in model.architecture],
            }
            label = f"{identify(model.architecture)} {blob[:8]} on {ids.digest[:8]} shard {shard:05d}"
            pieces.append(search.piece(EVALUATE, label, {**depends, "store": search.workspace.url}, depends))
    records = iter(search.run(pieces))
    found = {}
    for blob in distinct:
        parts = [_tensors(search, next(records).blobs["sequences"]) for _ in ids.shards]
        found[blob] = summaries(["model"], parts)["model"]
    return {name: found[model.blob] for name, model in models.items()}


@torch.inference_mode()
def evaluate_model(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """One stored model against the parent on one shard, both carried through layer by layer."""
    source = worker_source(arguments, Library({}))
    architecture = [tuple(block) for block in arguments["architecture"]]
    stored = StoredModel(source, arguments["blob"], architecture)
    first, end = arguments["rows"]
    ids_NS = torch.from_numpy(load_ids(source.store, arguments["ids"])[first:end].astype("int64")).to(source.device)
    size = micro_batch(ids_NS.shape[1], context.memory_retries)
    parent_ends, child_ends = source.ends(), stored.ends()
    (parent_NSD,) = sweep(source, [[PARENT_BLOCK] * source.num_layers], parent_ends.embed(ids_NS), 0, size)
    context.progress(0.5)
    (child_NSD,) = sweep(stored, [architecture], child_ends.embed(ids_NS), 0, size)
    sequences = compare(parent_ends, ids_NS, parent_NSD, [child_NSD], [child_ends])
    return PieceOutput(values={}, blobs={"sequences": sequences})


EVALUATE = Stage("evaluate", 2, evaluate_model)


def side_by_side(
    search: Search,
    costs: CostTable,
    after: Mapping[str, Comparison],
    before: Mapping[str, Comparison],
    parent: Comparison,
    architectures: Mapping[str, Blocks],
) -> dict[str, Any]:
    """What evaluation.json holds: quality on the report text before and after recovery, sizes, speed."""
    rows = rows_of(search, costs, after, parent, architectures)
    for name, was in {"parent": parent, **before}.items():
        rows[name]["before_recover"] = was.kl_nats
    return rows


def rows_of(
    search: Search,
    costs: CostTable,
    quality: Mapping[str, Comparison],
    parent: Comparison,
    architectures: Mapping[str, Blocks],
) -> dict[str, Any]:
    """Figures of the parent and of some architectures: quality, exact sizes, speed in the first scenario.

    Each row's `times` says whether its speed was `measured` here or is the `given` cost table's.
    """
    scenario = search.job.hardware.scenarios[0]
    times = {name: judged_times(search, costs, architecture) for name, architecture in architectures.items()}
    own = next(iter(times.values()))[scenario.name].parent
    num_layers = search.parent.shape.num_layers
    rows = {"parent": _row(search, costs, scenario, tuple([PARENT_BLOCK] * num_layers), own, parent)}
    for name, architecture in architectures.items():
        measured = times[name][scenario.name]
        # Every model took turns with the parent; its ratio to it is carried over to the parent's time of one run.
        scaled = {key: round(own[key] * measured.ratios[key.removesuffix("_ns")]) for key in own}
        rows[name] = _row(search, costs, scenario, architecture, scaled, quality[name])
        rows[name]["runtime_ratio"] = measured.ratios["runtime"]
        rows[name]["over_budget"] = over_budget(search, costs, architecture, times[name])
    return rows


def over_budget(
    search: Search, costs: CostTable, architecture: Blocks, measured: dict[str, Measured]
) -> dict[str, float]:
    """Limits that are missed beyond the tolerance, each with its value over the limit; empty when the budget is met."""
    excesses = excess_of(search, costs, architecture, measured)
    return {e.field: e.ratio for e in excesses if not within([e])}


def _row(
    search: Search,
    costs: CostTable,
    scenario: Scenario,
    architecture: Sequence[tuple[str, str]],
    times: Mapping[str, int],
    comparison: Comparison,
) -> dict[str, Any]:
    total = costs.total(scenario.name, architecture)
    shape = search.parent.shape
    entries = entries_of(shape, architecture)
    # One more token at the end of the scenario: what a sequence's cache grows by where nothing is cut off.
    length = scenario.prefill + scenario.generate
    per_sequence = sum(kv_bytes(entry["attention"], shape, 1, length) for entry in entries)
    return {
        "times": "given" if times_are_given(search) else "measured",
        "kl_nats": comparison.kl_nats,
        "kl_standard_error": comparison.standard_error,
        "perplexity": comparison.perplexity,
        "top1_agreement": comparison.top1_agreement,
        "parameters": total["parameters"],
        "weights_bytes": total["weights_bytes"],
        "kv_bytes_per_token": per_sequence / length,
        "prefill_tokens_per_second": scenario.batch_size * scenario.prefill * 1e9 / times["prefill_ns"],
        "decode_tokens_per_second": scenario.batch_size * 1e9 / times["decode_ns"],
        "runtime_seconds": times["runtime_ns"] / 1e9,
        "architecture": [list(block) for block in architecture],
    }


def _tensors(search: Search, blob: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(search.workspace.store.blob_path(blob)))
