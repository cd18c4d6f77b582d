"""The sums that start a layer's variants, gathered over the text that they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.sweep import micro_batches
from inlay.nas.families import Shape
from inlay.nas.modeling import build_layer
from inlay.nas.pieces.boundaries import micro_batch, worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.variants import Variant, parse_variant
from inlay.nas.variants.statistics import Statistic, Sums, gather


def statistics_of(variants: Sequence[Variant], shape: Shape, layer: int) -> list[Statistic]:
    """What the starts of a layer's variants need, each once, in the order of their names."""
    found = {each.name: each for variant in variants for each in variant.statistics(shape, layer)}
    return [found[name] for name in sorted(found)]


def calibrate_layer(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Sums one layer, shard after shard: whoever does it adds in the same order."""
    source = worker_source(arguments, Library({}))
    index, parent, ranges = arguments["layer"], source.parent, arguments["ranges"]
    statistics = statistics_of([parse_variant(label) for label in arguments["variants"]], parent.shape, index)
    attention, ffn = parent.config.blocks[index]["attention"], parent.config.blocks[index]["ffn"]
    source.use(attention)
    layer = build_layer(parent.config, index, attention, ffn, parent.layer_state(index), source.dtype)
    layer = layer.to(source.device)
    scratch = BoundaryScratch(Path(arguments["scratch"]), len(ranges))
    held_out = set(arguments["held_out"])
    total: Sums | None = None
    with torch.inference_mode():
        for shard, (first, end) in enumerate(ranges):
            rows = [row - first for row in range(first, end) if row not in held_out]
            hidden = scratch.read(index, shard)[rows].to(source.device)
            # A shard's own sum first: fewer small numbers are added to large ones.
            own: Sums | None = None
            for start, stop in micro_batches(len(hidden), micro_batch(hidden.shape[1], context.memory_retries)):
                where = source.context(stop - start, hidden.shape[1])
                sums, _ = gather(layer, hidden[start:stop], where, statistics)
                own = sums if own is None else own + sums
            if own is not None:
                total = own if total is None else total + own
            context.progress((shard + 1) / len(ranges))
    assert total is not None
    return PieceOutput(values={"tokens": total.tokens}, blobs={"sums": total.to_dict()})
