"""What a worker times: every distinct subblock, and whole architectures in turns with the parent."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.pieces.timing import Times, Workload, random_model, rounds_of, summarise
from inlay.nas.pieces.weights import parent_of

COPIES = 4
"""Copies of a subblock in the model that is timed: enough to rise above the noise of the ends."""


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


def measure_subblocks(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Times every entry: models of a few copies of it, in turns with a model that has only the ends."""
    config = parent_of(arguments["parent"]).config
    dtype, device = getattr(torch, arguments["dtype"]), torch.device(arguments["device"])
    workload = Workload(**arguments["workload"])
    entries: list[str] = arguments["entries"]
    nothing = {"attention": ABSENT, "ffn": ABSENT}
    ends_only = random_model(config.with_blocks([nothing] * COPIES), dtype, device)
    # One turn of all; after an attempt that ran out of memory half as many models are held at once, beside the ends.
    held = max(1, -(-len(entries) // 2**context.memory_retries))
    values: dict[str, dict[str, int]] = {}
    for start in range(0, len(entries), held):
        models = {
            key: random_model(config.with_blocks([_block(key)] * COPIES), dtype, device, ends_only)
            for key in entries[start : start + held]
        }
        models["ends"] = ends_only
        share = len(models) / (len(entries) + 1)

        def on_round(done: float, start: int = start, share: float = share) -> None:
            context.progress(start / len(entries) + done * share)

        rounds = rounds_of(models, workload, device, on_round=on_round)
        values |= _own_times({key: summarise(found, workload) for key, found in rounds.items()}, workload)
    return PieceOutput(values={"times": values}, blobs={})


def _own_times(times: Mapping[str, Times], workload: Workload) -> dict[str, dict[str, int]]:
    """What a subblock adds to the ends, which were timed beside it."""
    ends = times["ends"]
    values = {}
    for key, found in times.items():
        if key == "ends":
            prefill, decode, spread = found.prefill_ns, found.decode_ns, found.spread_ns
        else:
            prefill = max(0, found.prefill_ns - ends.prefill_ns) // COPIES
            decode = max(0, found.decode_ns - ends.decode_ns) // COPIES
            spread = (found.spread_ns + ends.spread_ns) // COPIES
        runtime = prefill + workload.generate * decode
        values[key] = {"prefill_ns": prefill, "decode_ns": decode, "runtime_ns": runtime, "spread_ns": spread}
    return values


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


def _block(key: str) -> dict[str, Any]:
    slot, text = key.split(" ", 1)
    return {"attention": ABSENT, "ffn": ABSENT, slot: json.loads(text)}
