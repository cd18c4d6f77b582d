"""Candidate architectures: their true KL by the sweep, their true times, and whether they meet the budget."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.hardware.costs import CostTable, quantities
from inlay.nas.hardware.timing import Workload, random_model, rounds_of, summarise
from inlay.nas.job.budget import BudgetLimit
from inlay.nas.stages.comparison import Comparison, compare_architectures, summaries
from inlay.nas.stages.measure import environment, workload_of
from inlay.nas.stages.search import Search, Stage
from inlay.nas.stages.source import Library, parent_of
from inlay.nas.stages.text import Ids
from inlay.nas.stages.whole import entries_of
from inlay.nas.tables import PARENT_BLOCK, Block

TOLERANCE = 0.02
"""How far a measured quantity may be above its limit."""
GROUP = 12
"""Architectures that one piece carries through the layers together: what they share is computed once."""

Blocks = tuple[Block, ...]


def identify(architecture: Sequence[Block]) -> str:
    """A short name of an architecture, from its digest."""
    return hashlib.sha256(json.dumps([list(block) for block in architecture]).encode()).hexdigest()[:12]


def true_scores(search: Search, ids: Ids, library: Library, architectures: Sequence[Blocks]) -> list[Comparison]:
    """The true KL of whole architectures on a text, in the order given."""
    store = search.workspace.store
    pieces, places = [], []
    for first in range(0, len(architectures), GROUP):
        group = list(architectures[first : first + GROUP])
        labels = [identify(architecture) for architecture in group]
        held = used_weights(library, group)
        for shard, rows in enumerate(ids.shards):
            arguments = {
                "store": search.workspace.url,
                "ids": ids.digest,
                "rows": [rows],
                "shards": [shard],
                "num_shards": len(ids.shards),
                "first_layer": 0,
                "architectures": [[list(block) for block in architecture] for architecture in group],
                "labels": labels,
                "library": held,
            }
            depends = {
                "ids": ids.digest,
                "rows": list(rows),
                "architectures": arguments["architectures"],
                "library": held,
            }
            pieces.append(search.piece(TRUE, f"{labels[0]}+{len(labels) - 1} shard {shard:05d}", arguments, depends))
            places.append(first)
    records = search.run(pieces)
    found: list[Comparison] = []
    for first in range(0, len(architectures), GROUP):
        parts = [r for r, place in zip(records, places, strict=True) if place == first]
        labels = [str(label) for label in parts[0].values["labels"]]
        by_label = summaries(labels, [_tensors(store.blob_path(part.blobs["sequences"])) for part in parts])
        found += [by_label[label] for label in labels]
    return found


TRUE = Stage("true_kl", 2, compare_architectures)


@dataclass(frozen=True)
class Measured:
    """An architecture's times in one scenario, taken in turns with the parent's.

    Args:
        prefill_ns, decode_ns, runtime_ns, spread_ns: medians of the architecture's own rounds.
        ratios: `prefill, decode, runtime` relative to the parent, medians of the paired rounds.
        parent: the parent's `prefill_ns, decode_ns, runtime_ns` in the same rounds.
    """

    prefill_ns: int
    decode_ns: int
    runtime_ns: int
    spread_ns: int
    ratios: dict[str, float]
    parent: dict[str, int]


def measure(search: Search, architecture: Blocks) -> dict[str, Measured]:
    """True times by scenario."""
    blocks = entries_of(search.parent.shape, architecture)
    found = {}
    for scenario in search.job.hardware.scenarios:
        workload = asdict(workload_of(scenario))
        depends = {"blocks": blocks, "workload": workload, "environment": environment(search)}
        name = f"{identify(architecture)} in {scenario.name}"
        piece = search.piece(TIMES, name, {"blocks": blocks, "workload": workload}, depends)
        (record,) = search.run([piece], exclusive=True)
        found[scenario.name] = Measured(**record.values["measured"])
    return found


def time_architecture(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Times an architecture in turns with the parent; weights are random, shapes and code are the export's."""
    config = parent_of(arguments["parent"]).config
    dtype, device = getattr(torch, arguments["dtype"]), torch.device(arguments["device"])
    workload = Workload(**arguments["workload"])
    own = random_model(config, dtype, device)
    models = {"parent": own, "child": random_model(config.with_blocks(arguments["blocks"]), dtype, device, own)}
    rounds = rounds_of(models, workload, device, on_round=context.progress)
    child, parent = (summarise(rounds[name], workload) for name in ("child", "parent"))
    runtime = {name: [p + workload.generate * d for p, d in rounds[name]] for name in models}
    pairs = {
        "prefill": [c[0] / p[0] for c, p in zip(rounds["child"], rounds["parent"], strict=True)],
        "decode": [c[1] / p[1] for c, p in zip(rounds["child"], rounds["parent"], strict=True)],
        "runtime": [c / p for c, p in zip(runtime["child"], runtime["parent"], strict=True)],
    }
    measured = Measured(
        child.prefill_ns,
        child.decode_ns,
        child.runtime_ns,
        child.spread_ns,
        {name: statistics.median(ratios) for name, ratios in pairs.items()},
        {"prefill_ns": parent.prefill_ns, "decode_ns": parent.decode_ns, "runtime_ns": parent.runtime_ns},
    )
    return PieceOutput(values={"measured": asdict(measured)}, blobs={})


TIMES = Stage("true_times", 2, time_architecture)


@dataclass(frozen=True)
class Excess:
    """How far one limit is missed: `ratio` 1.05 is 5 % above it."""

    field: str
    quantity: str
    ratio: float


def excess_of(
    search: Search, costs: CostTable, architecture: Blocks, measured: dict[str, Measured] | None
) -> list[Excess]:
    """Every limit of the job with measured (or, without `measured`, predicted) value over limit; 1 or less is within.

    Times relative to the parent are judged by the paired ratio, absolute ones by the median; sizes are exact.
    """
    found = []
    for scenario in search.job.hardware.scenarios:
        tokens = scenario.batch_size * scenario.generate
        own = quantities(costs.total(scenario.name, architecture), tokens)
        parent = quantities(costs.total(scenario.name, [PARENT_BLOCK] * len(architecture)), tokens)
        for limit in search.job.budget:
            if limit.scenario not in (None, scenario.name):
                continue
            times = measured[scenario.name] if measured is not None else None
            found.append(Excess(f"{scenario.name}.{limit.name}", limit.name, _over(limit, own, parent, times, tokens)))
    return found


def within(excesses: Sequence[Excess]) -> bool:
    """Whether every limit is met within the tolerance; sizes are exact and have none."""
    return all(
        e.ratio <= (1 + TOLERANCE if e.quantity in ("runtime", "prefill", "decode", "throughput") else 1)
        for e in excesses
    )


def used_weights(library: Library, architectures: Sequence[Blocks]) -> dict[str, dict[str, str]]:
    """Digests of the trained weights that these architectures hold, by layer and label."""
    held: dict[str, dict[str, str]] = {}
    for architecture in architectures:
        for layer, block in enumerate(architecture):
            for label in block:
                if library.has(layer, label):
                    held.setdefault(str(layer), {})[label] = library.digests[layer][label]
    return held


def _over(
    limit: BudgetLimit, own: dict[str, float], parent: dict[str, float], times: Measured | None, tokens: int
) -> float:
    name = "runtime" if limit.name == "throughput" else limit.name
    if times is None or name not in times.ratios:
        ratio = own[limit.name] / limit.against(parent[limit.name])
        return 1 / ratio if limit.is_lower else ratio
    if limit.ratio is not None:
        allowed = 1 / float(limit.ratio) if limit.is_lower else float(limit.ratio)
        return times.ratios[name] / allowed
    value = float(getattr(times, f"{name}_ns"))
    if limit.is_lower:
        return limit.against(0) / (tokens * 1e9 / value)
    return value / limit.against(0)


def _tensors(path: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))
