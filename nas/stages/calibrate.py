"""calibrate: what is summed over text before anything is trained or rounded.

For each layer the sums that start its variants, over all the text that they are trained on; and where a search chooses
formats, what the parent's matrices read, over the first of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from inlay.cluster.pieces import Piece, Record
from inlay.cluster.records import kept_records
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.settings import LocalSettings
from inlay.distill.text import training_order
from inlay.nas.loop.search import Search
from inlay.nas.loop.spans import scratch_of, spans_with_boundaries
from inlay.nas.pieces.calibration import calibrate_layer, statistics_of
from inlay.nas.pieces.inputs import gather_inputs
from inlay.nas.pieces.matrix_inputs import manifest
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids
from inlay.nas.variants import Variant


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


CALIBRATE = Stage("calibrate", 4, calibrate_layer)
INPUTS = Stage("inputs", 1, gather_inputs)
INPUT_TOKENS = 8192
"""Tokens, whole sequences of them, over which what matrices read is summed."""


def inputs_of(search: Search, ids: Ids) -> str:
    """The digest of the manifest of what every matrix of the parent reads, by whole-model names."""
    few = Ids(ids.digest, (max(1, min(ids.shape[0], INPUT_TOKENS // ids.shape[1])), ids.shape[1]))
    scratch, num_layers = scratch_of(search, few), search.parent.shape.num_layers
    pieces = []
    for layer in range(num_layers):
        depends = {"ids": few.digest, "shape": list(few.shape), "layer": layer}
        handles = {"store": search.workspace.url, "scratch": str(scratch.folder), "ranges": few.shards}
        pieces.append(search.piece(INPUTS, f"layer {layer:04d}", {**depends, **handles}, depends))
    kept = kept_records(search.workspace.store, pieces)
    missing = [layer for layer, piece in enumerate(pieces) if piece.key not in kept]
    for span in spans_with_boundaries(search, few, missing):
        search.part(span.share, 1)
        search.run([pieces[layer] for layer in span.layers if layer in missing], "inputs of matrices", "layers")
    places = {
        name: (record.blobs["products"], tensor)
        for record in search.run(pieces)
        for name, tensor in record.values["readers"].items()
    }
    return search.workspace.store.put_blob(manifest(places))


def sums_of(record: Record) -> str:
    """The digest of a layer's sums."""
    return record.blobs["sums"]
