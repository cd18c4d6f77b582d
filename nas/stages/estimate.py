"""How long each stage takes: operations counted, over the rate at which one layer of the parent runs here."""

from __future__ import annotations

import os
import time

from inlay.nas.families import Parent, Slot
from inlay.nas.job import Job
from inlay.nas.loop.probes import probe_tokens
from inlay.nas.variants import ends_parameters, parameters, variants_of

MODELS = 3
"""Child and two baselines: what is recovered."""
PROBE_RUNS = 3
"""One layer of the parent is run so often, and the fastest taken, to learn what a worker computes in a second."""
SLOTS: tuple[Slot, Slot] = ("attention", "ffn")


def stage_seconds(job: Job, parent: Parent) -> dict[str, float]:
    """Seconds by stage, for workers on CPUs like this one; a stage that nothing is known of is not in it.

    Empty for other devices.
    """
    if job.hardware.device != "cpu":
        return {}
    shape = parent.shape
    space = [variants_of(job.space, shape, layer) for layer in range(shape.num_layers)]
    trained = sum(variant.trained for layer in space for variant in layer)
    workers = job.cluster.max_workers or local_workers(job)
    own = parent_parameters(parent) - ends_parameters(shape)
    head = shape.vocab * shape.hidden
    score_tokens = job.data.validate.tokens * 3 // 4
    forward = 2.0
    # The parent forward, and a child of 0.8 of it forward and back.
    trained_token = (1 + 3 * 0.8) * forward * (own + head)
    layer = own / shape.num_layers
    costs = {
        "distill": forward * own * job.distill.tokens + 3 * forward * trained * layer * 0.4 * job.distill.tokens,
        "score": forward * score_tokens * scored_blocks(job, parent) * (own / 2 + head),
        "assemble": forward * score_tokens * (4 * job.solve.pool + 3 * shape.num_layers + 12) * (own + head)
        + job.recover.probes * probe_tokens(job) * trained_token,
        "recover": MODELS * job.recover.tokens * trained_token,
    }
    at_once = {name: min(workers, shape.num_layers) if name in ("distill", "score") else workers for name in costs}
    # Child, uniform and depth are trained at once where there are workers for them, each on its own ranks.
    at_once["recover"] = min(MODELS, max(1, workers // job.recover.workers)) * job.recover.workers
    rate = _rate(parent, job.data.distill.sequence_length)
    return {name: operations / rate / at_once[name] for name, operations in costs.items()}


def scored_blocks(job: Job, parent: Parent) -> int:
    """Blocks whose KL is taken: every variant alone, and the pairs."""
    layers = range(parent.shape.num_layers)
    return sum(len(variants_of(job.space, parent.shape, layer)) - 2 for layer in layers) + job.score.pairs


def parent_parameters(parent: Parent) -> int:
    """All parameters, a tied head counted once."""
    shape = parent.shape
    layers = (parameters(shape.parent_entry(i, slot), slot, shape) for i in range(shape.num_layers) for slot in SLOTS)
    return ends_parameters(shape) + sum(layers)


def local_workers(job: Job) -> int:
    """Workers of a job without `max_workers` on this machine: as many as its CPUs hold."""
    return max(1, (os.cpu_count() or 1) // job.cluster.cpus_per_worker)


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
