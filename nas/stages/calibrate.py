"""calibrate: for each layer the sums that start its variants, from a part of the distillation text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, Record
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.sweep import micro_batches
from inlay.nas.loop.search import Search
from inlay.nas.modeling.modeling_inlay import build_layer
from inlay.nas.pieces.boundaries import micro_batch, worker_source
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.variants import Variant
from inlay.nas.variants.sums import CalibrationSums


def num_shards(search: Search, ids: Ids) -> int:
    """Shards of the distillation text that are summed: at least one, about `calibrate.tokens`."""
    first, end = ids.shards[0]
    return max(1, min(len(ids.shards), -(-search.job.calibrate.tokens // ((end - first) * ids.shape[1]))))


def calibrate_piece(
    search: Search, ids: Ids, layer: int, variants: Sequence[Variant], scratch: BoundaryScratch
) -> Piece:
    """The piece that sums one layer, from the boundaries on `scratch`."""
    products = any(variant.kind == "linear" for variant in variants)
    depends = {"ids": ids.digest, "shards": num_shards(search, ids), "products": products}
    return search.piece(
        CALIBRATE,
        f"layer {layer:04d}",
        {
            "store": search.workspace.url,
            "scratch": str(scratch.folder),
            "num_shards": scratch.num_shards,
            "layer": layer,
            **depends,
        },
        depends,
    )


def calibrate_layer(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Sums one layer over the calibration shards; products only where a linear variant wants them."""
    source = worker_source(arguments, Library({}))
    layer_index = arguments["layer"]
    parent = source.parent
    attention = parent.shape.parent_entry(layer_index, "attention")
    source.use(attention)
    layer = build_layer(
        parent.config,
        layer_index,
        attention,
        parent.shape.parent_entry(layer_index, "ffn"),
        parent.layer_state(layer_index),
        source.dtype,
    ).to(source.device)
    scratch = BoundaryScratch(Path(arguments["scratch"]), arguments["num_shards"])
    total: CalibrationSums | None = None
    with torch.inference_mode():
        for shard in range(arguments["shards"]):
            hidden = scratch.read(layer_index, shard).to(source.device)
            for start, end in micro_batches(len(hidden), micro_batch(hidden.shape[1], context.memory_retries)):
                where = source.context(end - start, hidden.shape[1])
                sums, _ = CalibrationSums.of(layer, hidden[start:end], where, arguments["products"])
                total = sums if total is None else total + sums
            context.progress((shard + 1) / (arguments["shards"]))
    assert total is not None
    return PieceOutput(values={"tokens": int(total.tokens)}, blobs={"sums": total.to_dict()})


CALIBRATE = Stage("calibrate", 2, calibrate_layer)


def sums_of(record: Record) -> str:
    """The digest of a layer's sums."""
    return record.blobs["sums"]
