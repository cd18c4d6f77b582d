"""calibrate: what is summed over text before anything is trained or rounded.

For each layer the sums that start its variants, over all the text that they are trained on; and where a search chooses
formats, how much the input channels of the parent's matrices count, over the first of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from inlay.cluster.pieces import Piece, Record
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.settings import LocalSettings
from inlay.distill.text import training_order
from inlay.nas.loop.search import Search
from inlay.nas.pieces.calibration import calibrate_layer, statistics_of
from inlay.nas.pieces.comparison import tensors_of
from inlay.nas.pieces.importance import gather_importance, means
from inlay.nas.pieces.shards import shard_ranges
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
IMPORTANCE = Stage("importance", 1, gather_importance)
IMPORTANCE_TOKENS = 8192
"""Tokens, whole sequences of them, over which the importance of input channels is the mean."""


def importance_of(search: Search, ids: Ids) -> str:
    """The digest of the importance of every input channel of the parent's matrices, by whole-model names."""
    from safetensors.torch import save

    number, length = max(1, min(ids.shape[0], IMPORTANCE_TOKENS // ids.shape[1])), ids.shape[1]
    pieces = []
    for shard, rows in enumerate(shard_ranges(number, length)):
        depends = {"ids": ids.digest, "rows": list(rows)}
        arguments = {"store": search.workspace.url, **depends}
        pieces.append(search.piece(IMPORTANCE, f"shard {shard:05d}", arguments, depends))
    store = search.workspace.store
    records = search.run(pieces, "importance of input channels", "shards")
    return store.put_blob(save(means([tensors_of(store.blob_path(record.blobs["sums"])) for record in records])))


def sums_of(record: Record) -> str:
    """The digest of a layer's sums."""
    return record.blobs["sums"]
