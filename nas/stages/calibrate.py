"""calibrate: for each layer the sums that start its variants, over all the text that they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, Record
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.local import LocalSettings
from inlay.distill.sweep import micro_batches
from inlay.distill.text import training_order
from inlay.nas.families import Shape
from inlay.nas.loop.search import Search
from inlay.nas.modeling import build_layer
from inlay.nas.pieces.boundaries import micro_batch, worker_source
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.variants import Variant, parse_variant
from inlay.nas.variants.statistics import Statistic, Sums, gather


def statistics_of(variants: Sequence[Variant], shape: Shape, layer: int) -> list[Statistic]:
    """What the starts of a layer's variants need, each once, in the order of their names."""
    found = {each.name: each for variant in variants for each in variant.statistics(shape, layer)}
    return [found[name] for name in sorted(found)]


def calibrate_piece(
    search: Search, ids: Ids, layer: int, variants: Sequence[Variant], scratch: BoundaryScratch
) -> Piece:
    """The piece that sums one layer, from the boundaries on `scratch`."""
    names = [each.name for each in statistics_of(variants, search.parent.shape, layer)]
    depends = {"ids": ids.digest, "layer": layer, "statistics": names, "held_out": held_out_rows(search, ids)}
    return search.piece(
        CALIBRATE,
        f"layer {layer:04d}",
        {
            "store": search.workspace.url,
            "scratch": str(scratch.folder),
            "ranges": ids.shards,
            "variants": [variant.label for variant in variants],
            **depends,
        },
        depends,
    )


def held_out_rows(search: Search, ids: Ids) -> list[int]:
    """The sequences that judge variants, starts among them: starts are not fitted to these."""
    count = LocalSettings.held_out * search.job.distill.batch_size
    num_sequences, length = ids.shape
    return sorted(int(row) for row in training_order(num_sequences, length, length, search.job.seed, count)[-count:])


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


CALIBRATE = Stage("calibrate", 3, calibrate_layer)


def sums_of(record: Record) -> str:
    """The digest of a layer's sums."""
    return record.blobs["sums"]
