"""plan: what a search will take, before anything is run or written."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from inlay.nas.families import Parent, Slot
from inlay.nas.job import Job
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.probes import probe_tokens
from inlay.nas.loop.search import compute_dtype
from inlay.nas.pieces.shards import shard_ranges
from inlay.nas.stages.run import open_job_parent
from inlay.nas.variants import Variant, ends_parameters, kv_bytes, parameters, variants_of

EXACT = ("parameters", "weights", "kv", "memory")
"""What needs no measuring."""
MODELS = 3
"""Child and two baselines: what is recovered."""
PROBE_RUNS = 3
"""One layer of the parent is run so often, and the fastest taken, to learn what a worker computes in a second."""


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
            "variants": sum(not variant.is_parent for layer in space for variant in layer),
            "trained": trained,
            "log10_architectures": sum(_log10_blocks(layer) for layer in space),
        },
        "stages": _stages(job, parent, space, trained),
        "facts": _facts(job, parent, space),
        "warnings": _warnings(job, parent, space),
    }


def parent_parameters(parent: Parent) -> int:
    """All parameters, a tied head counted once."""
    shape = parent.shape
    layers = (parameters(shape.parent_entry(i, slot), slot, shape) for i in range(shape.num_layers) for slot in SLOTS)
    return ends_parameters(shape) + sum(layers)


SLOTS: tuple[Slot, Slot] = ("attention", "ffn")


def scratch_bytes(job: Job, parent: Parent) -> int:
    """What scratch holds at most: the states before, in float32 also those within, every layer."""
    states = 2 * parent.shape.num_layers + 1 if compute_dtype(job, parent) == "float32" else parent.shape.num_layers + 1
    size = 4 if compute_dtype(job, parent) == "float32" else 2
    return job.distill.tokens * parent.shape.hidden * size * states


def _log10_blocks(layer: tuple[Variant, ...]) -> float:
    return sum(math.log10(sum(variant.slot == slot for variant in layer)) for slot in SLOTS)


def _stages(job: Job, parent: Parent, space: list[tuple[Variant, ...]], trained: int) -> list[dict[str, Any]]:
    shape, length = parent.shape, job.data.distill.sequence_length
    workers = job.cluster.max_workers or local_workers(job)
    own = parent_parameters(parent) - ends_parameters(shape)
    layer = own / shape.num_layers
    head = shape.vocab * shape.hidden
    score_tokens = job.data.validate.tokens * 3 // 4
    shards = len(shard_ranges(max(1, job.distill.tokens // length), length))
    blocks = sum(len(v) - 2 for v in space) + job.score.pairs
    forward = 2.0
    # The parent forward, and a child of 0.8 of it forward and back.
    trained_token = (1 + 3 * 0.8) * forward * (own + head)
    costs = {
        "distill": forward * own * job.distill.tokens + 3 * forward * trained * layer * 0.4 * job.distill.tokens,
        "score": forward * score_tokens * blocks * (own / 2 + head),
        "assemble": forward * score_tokens * (4 * job.solve.pool + 3 * shape.num_layers + 12) * (own + head)
        + job.recover.probes * probe_tokens(job) * trained_token,
        "recover": MODELS * job.recover.tokens * trained_token,
    }
    rate = _rate(parent, length) if job.hardware.device == "cpu" else None
    at_once = {name: min(workers, shape.num_layers) if name in ("distill", "score") else workers for name in costs}
    # Child, uniform and depth are trained at once where there are workers for them, each on its own ranks.
    at_once["recover"] = min(MODELS, max(1, workers // job.recover.workers)) * job.recover.workers
    seconds = {name: operations / rate / at_once[name] if rate else None for name, operations in costs.items()}
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
            "seconds": seconds["distill"],
            "what": f"{trained} variants, {job.distill.tokens:,} tokens each",
        },
        {
            "name": "score",
            "pieces": shape.num_layers,
            "seconds": seconds["score"],
            "what": f"{blocks} blocks on {score_tokens:,} tokens",
        },
        {
            "name": "assemble",
            "seconds": seconds["assemble"],
            "what": f"a pool of {job.solve.pool}, true KL, true times, baselines, {job.recover.probes} probes",
        },
        {
            "name": "recover",
            "pieces": MODELS,
            "seconds": seconds["recover"],
            "what": f"child and two baselines where they differ, {job.recover.tokens:,} tokens each",
        },
        {"name": "evaluate", "what": f"{job.data.validate.tokens // 4:,} tokens that nothing has seen"},
    ]


def _rate(parent: Parent, length: int) -> float:
    """Operations a second of one thread, by the parent's first layer on one micro-batch."""
    import torch

    from inlay.nas.modeling.modeling_inlay import build_layer, make_context
    from inlay.nas.pieces.boundaries import micro_batch

    shape, dtype, device = parent.shape, torch.float32, torch.device("cpu")
    attention, ffn = (shape.parent_entry(0, slot) for slot in SLOTS)
    layer = build_layer(parent.config, 0, attention, ffn, parent.layer_state(0), dtype)
    batch = micro_batch(length)
    context = make_context(parent.config, batch, length, dtype, device, [attention])
    hidden_BSD = torch.randn(batch, length, shape.hidden)
    torch.set_num_threads(1)
    times = []
    with torch.inference_mode():
        for _ in range(PROBE_RUNS):
            start = time.perf_counter()
            middle_BSD = hidden_BSD + layer.attention_update(hidden_BSD, context)
            layer.ffn_update(middle_BSD)
            times.append(time.perf_counter() - start)
    operations = (
        2.0
        * batch
        * length
        * sum(parameters(entry, slot, shape) for entry, slot in zip((attention, ffn), SLOTS, strict=True))
    )
    return operations / min(times)


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


def local_workers(job: Job) -> int:
    """Workers of a job without `max_workers` on this machine: as many as its CPUs hold."""
    return max(1, (os.cpu_count() or 1) // job.cluster.cpus_per_worker)


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
                cache = kv_bytes(entry, shape, scenario.batch_size, length)
                count = parameters(entry, slot, shape)
                weights = count * shape.dtype_bytes
                sizes.append({"parameters": count, "weights": weights, "kv": cache, "memory": weights + cache})
            for name in EXACT:
                least[name] += min(size[name] for size in sizes)
                own[name] += sizes[0][name]
    return least, own
