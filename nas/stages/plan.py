"""plan: what a search will take, before anything is run or written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from inlay.nas.families import Parent
from inlay.nas.job import Job
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.search import compute_dtype
from inlay.nas.pieces.shards import shard_ranges
from inlay.nas.stages.estimate import MODELS, SLOTS, parent_parameters, scored_blocks, stage_seconds
from inlay.nas.stages.run import open_job_parent
from inlay.nas.variants import Variant, ends_parameters, kv_bytes, parameters, variants_of

EXACT = ("parameters", "weights", "kv", "memory")
"""What needs no measuring."""


def make_plan(job: Job) -> dict[str, Any]:
    """The plan that `inlay plan` shows; raises UserError for what is wrong with the job or its parent.

    Times are estimates for workers on CPUs like this one: operations counted, over the rate at which one layer of the
    parent runs here. They are None for other devices.
    """
    parent = open_job_parent(job)
    shape = parent.shape
    space = [variants_of(job.space, shape, layer) for layer in range(shape.num_layers)]
    trained = sum(variant.trained for layer in space for variant in layer)
    return {
        "parent": {
            "name": job.parent,
            "family": shape.family,
            "layers": shape.num_layers,
            "parameters": parent_parameters(parent),
            "weights_bytes": parent_parameters(parent) * shape.dtype_bytes,
        },
        "space": {
            "variants": sum(variant.kind != "parent" for layer in space for variant in layer),
            "trained": trained,
            "log10_architectures": sum(_log10_blocks(layer) for layer in space),
        },
        "stages": _stages(job, parent, space, trained),
        "facts": _facts(job, parent, space),
        "warnings": _warnings(job, parent, space),
    }


def scratch_bytes(job: Job, parent: Parent) -> int:
    """What scratch holds at most: the states before, in float32 also those within, every layer."""
    states = 2 * parent.shape.num_layers + 1 if compute_dtype(job, parent) == "float32" else parent.shape.num_layers + 1
    size = 4 if compute_dtype(job, parent) == "float32" else 2
    return job.distill.tokens * parent.shape.hidden * size * states


def _log10_blocks(layer: tuple[Variant, ...]) -> float:
    return sum(math.log10(sum(variant.slot == slot for variant in layer)) for slot in SLOTS)


def _stages(job: Job, parent: Parent, space: list[tuple[Variant, ...]], trained: int) -> list[dict[str, Any]]:
    shape, length = parent.shape, job.data.distill.sequence_length
    score_tokens = job.data.validate.tokens * 3 // 4
    shards = len(shard_ranges(max(1, job.distill.tokens // length), length))
    seconds = stage_seconds(job, parent)
    variant_bytes = sum(
        parameters(v.entry(shape, i), v.slot, shape) for i, vs in enumerate(space) for v in vs if v.trained
    )
    return [
        {
            "name": "measure",
            "pieces": len(job.hardware.scenarios),
            "what": "times of every distinct subblock, alone on the device",
        },
        {
            "name": "advance",
            "pieces": shards,
            "bytes": scratch_bytes(job, parent),
            "what": "the parent's hidden states, on scratch",
        },
        {
            "name": "distill",
            "pieces": shape.num_layers,
            "bytes": variant_bytes * shape.dtype_bytes,
            "seconds": seconds.get("distill"),
            "what": f"{trained} variants, {job.distill.tokens:,} tokens each",
        },
        {
            "name": "score",
            "pieces": shape.num_layers,
            "seconds": seconds.get("score"),
            "what": f"{scored_blocks(job, parent)} blocks on {score_tokens:,} tokens",
        },
        {
            "name": "assemble",
            "seconds": seconds.get("assemble"),
            "what": f"a pool of {job.solve.pool}, true KL, true times, baselines, {job.recover.probes} probes",
        },
        {
            "name": "recover",
            "pieces": MODELS,
            "seconds": seconds.get("recover"),
            "what": f"child and two baselines where they differ, {job.recover.tokens:,} tokens each",
        },
        {"name": "evaluate", "what": f"{job.data.validate.tokens // 4:,} tokens that nothing has seen"},
    ]


def _facts(job: Job, parent: Parent, space: list[tuple[Variant, ...]]) -> list[tuple[str, str]]:
    shape = parent.shape
    facts = [("budget", ", ".join(f"{limit.field.removeprefix('budget.')} {limit.text}" for limit in job.budget))]
    for scenario in job.hardware.scenarios:
        length = scenario.prefill + scenario.generate
        kv = sum(
            kv_bytes(shape.parent_entry(i, "attention"), shape, scenario.batch_size, length)
            for i in range(shape.num_layers)
        )
        facts.append(
            (
                scenario.name,
                f"batch {scenario.batch_size}, prompt {scenario.prefill}, {scenario.generate} generated; "
                f"the parent's KV cache takes {kv:,} bytes",
            )
        )
        least, own = reachable(parent, space, scenario)
        ratios = ", ".join(f"{name} {least[name] / own[name]:.3f}x" for name in EXACT)
        facts.append(("least", f"in {scenario.name}: {ratios}; least times are known once they were measured"))
    return facts


def _warnings(job: Job, parent: Parent, space: list[tuple[Variant, ...]]) -> list[str]:
    found = []
    folder = Path(job.resolve(job.cluster.scratch)) if job.cluster.scratch else job.default_workspace()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if scratch_bytes(job, parent) > free // 2:
        found.append("scratch does not hold all boundaries at once: layers are worked on in spans, one after the other")
    for scenario in job.hardware.scenarios:
        least, own = reachable(parent, space, scenario)
        for limit in job.budget:
            if limit.name in EXACT and limit.scenario in (None, scenario.name):
                if least[limit.name] <= limit.against(own[limit.name]):
                    continue
                found.append(
                    f"{limit.field}: {limit.text} cannot be met in {scenario.name}; the least that the space reaches "
                    f"is {least[limit.name] / own[limit.name]:.3f}x"
                )
    return found


def reachable(
    parent: Parent, space: list[tuple[Variant, ...]], scenario: Scenario
) -> tuple[dict[str, int], dict[str, int]]:
    """The least of each exact quantity that the space reaches, each on its own, and the parent's, ends included."""
    shape, length = parent.shape, scenario.prefill + scenario.generate
    numbers = ends_parameters(shape)
    ends = {"parameters": numbers, "weights": numbers * shape.dtype_bytes, "kv": 0}
    ends["memory"] = ends["weights"]
    least, own = dict(ends), dict(ends)
    for layer, variants in enumerate(space):
        for slot in SLOTS:
            sizes = []
            for variant in (v for v in variants if v.slot == slot):
                entry = variant.entry(shape, layer)
                cache = kv_bytes(entry, shape, scenario.batch_size, length) if slot == "attention" else 0
                count = parameters(entry, slot, shape)
                weights = count * shape.dtype_bytes
                sizes.append({"parameters": count, "weights": weights, "kv": cache, "memory": weights + cache})
            for name in EXACT:
                least[name] += min(size[name] for size in sizes)
                own[name] += sizes[0][name]
    return least, own
