"""The sums that start a layer's variants, gathered over the text that they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.sweep import micro_batches
from inlay.nas.families import Shape
from inlay.nas.modeling import build_layer
from inlay.nas.pieces.boundaries import micro_batch, worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.variants import Variant, parse_variant
from inlay.nas.variants.run import run_state
from inlay.nas.variants.statistics import Statistic, Sums, gather


def statistics_of(variants: Sequence[Variant], shape: Shape, layer: int) -> list[Statistic]:
    """What the starts of a layer's variants need, each once, in the order of their names."""
    found = {each.name: each for variant in variants for each in variant.statistics(shape, layer)}
    return [found[name] for name in sorted(found)]


def calibrate_layer(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Sums one layer, shard after shard: whoever does it adds in the same order.

    Statistics that need the sums of others are gathered in a second pass.
    """
    source = worker_source(arguments, Library({}))
    index, parent, ranges = arguments["layer"], source.parent, arguments["ranges"]
    attention, ffn = parent.config.blocks[index]["attention"], parent.config.blocks[index]["ffn"]
    source.use(attention)
    variants = [parse_variant(label) for label in arguments["variants"]]
    states = [parent.layer_state(each) for each in range(index, index + max(1, *(len(v.run) for v in variants)))]
    states = [{name: tensor.to(source.device) for name, tensor in own.items()} for own in states]
    state = run_state(states)
    layer = build_layer(parent.config, index, attention, ffn, states[0], source.dtype)
    scratch = BoundaryScratch(Path(arguments["scratch"]), len(ranges))
    held_out = set(arguments["held_out"])

    def shards() -> Iterator[Tensor]:
        for shard, (first, end) in enumerate(ranges):
            rows = [row - first for row in range(first, end) if row not in held_out]
            yield scratch.read(index, shard)[rows].to(source.device)

    def summed(statistics: Sequence[Statistic], done: float, share: float) -> Sums:
        total: Sums | None = None
        for shard, hidden in enumerate(shards(), start=1):
            # A shard's own sum first: fewer small numbers are added to large ones.
            own: Sums | None = None
            for start, stop in micro_batches(len(hidden), micro_batch(hidden.shape[1], context.memory_retries)):
                where = source.context(stop - start, hidden.shape[1])
                sums, _ = gather(layer, hidden[start:stop], where, statistics)
                own = sums if own is None else own + sums
            if own is not None:
                total = own if total is None else total + own
            context.progress(done + share * shard / len(ranges))
        assert total is not None
        return total

    statistics = statistics_of(variants, parent.shape, index)
    later = [each for each in statistics if each.needs]
    with torch.inference_mode():
        total = summed([each.ready(state, Sums()) for each in statistics if not each.needs], 0.0, 0.5 if later else 1.0)
        if later:
            total |= summed([each.ready(state, total) for each in later], 0.5, 0.5)
    return PieceOutput(values={"tokens": total.tokens}, blobs={"sums": total.to_dict()})
