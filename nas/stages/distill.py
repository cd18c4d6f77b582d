"""distill: the block library. One piece trains all variants of one layer, fed by one parent pass."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inlay.cluster.pieces import Piece, Record
from inlay.cluster.records import kept_records
from inlay.distill.settings import LocalSettings
from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.loop.spans import scratch_of, spans_with_boundaries
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.pieces.library import distill_layer
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.report.sentences import counted
from inlay.nas.stages.calibrate import calibrate_piece, sums_of
from inlay.nas.variants import Variant, variants_of


@dataclass(frozen=True)
class Stretch:
    """A part of the training of variants.

    Args:
        first: the step that it begins with.
        end: the step behind its last one.
        before: what lies behind it led to; nothing where it is the first.
    """

    first: int
    end: int
    before: Library


def build_library(
    search: Search, ids: Ids, chosen: Sequence[Sequence[Variant]] | None = None, stretch: Stretch | None = None
) -> list[Record]:
    """Calibrates and trains every layer that has variants to train and no record yet.

    Args:
        search: the running search.
        ids: the text.
        chosen: the variants to train, by layer; by default all. A layer's sums are of all its variants in any case.
        stretch: the part of their training, by default all of it. After a part the parent's hidden states stay on
            scratch where it holds all of them, for the next one; `forget_states` frees them.

    Returns:
        One record for each layer that has any, in layer order. `values["variants"]` says for each variant its status,
        losses and reason; `blobs` holds the weights of those that were trained, in the parent's dtype.
    """
    num_layers = search.parent.shape.num_layers
    every = [layer_variants(search, layer) for layer in range(num_layers)]
    space = every if chosen is None else chosen
    pieces = {layer: distill_piece(search, ids, layer, held, "", stretch) for layer, held in enumerate(space) if held}
    if not pieces:
        return []
    kept = kept_records(search.workspace.store, list(pieces.values()))
    todo = [layer for layer, piece in pieces.items() if piece.key not in kept]
    outcomes = keeps_outcomes(search)
    scratch = scratch_of(search, ids, outcomes)
    begun = stretch is not None and stretch.first > 0
    for span in spans_with_boundaries(search, ids, todo, outcomes, again=stretch is not None, of_layers=len(pieces)):
        layers = [layer for layer in span.layers if layer in todo]
        summed = [layer for layer in layers if not begun and statistics_of(every[layer], search.parent.shape, layer)]
        records = search.run(
            [calibrate_piece(search, ids, layer, every[layer], scratch) for layer in summed],
            "sums that start the variants",
            "layers",
        )
        sums = dict(zip(summed, map(sums_of, records), strict=True))
        search.part(span.share, 1)
        search.run(
            [distill_piece(search, ids, layer, space[layer], sums.get(layer, ""), stretch) for layer in layers],
            f"training {counted(sum(len(space[layer]) for layer in layers), 'variant')}",
            "layers",
        )
    return search.run(list(pieces.values()))


def forget_states(search: Search, ids: Ids) -> None:
    """Frees what parts of trainings have left on scratch."""
    shutil.rmtree(scratch_of(search, ids, keeps_outcomes(search)).folder, ignore_errors=True)


def keeps_outcomes(search: Search) -> bool:
    """Whether what layers make of their inputs is read from scratch instead of computed again.

    Only in float32: an update is small beside the states that it is the difference of.
    """
    return bool(search.identity["dtype"] == "float32")


def layer_variants(search: Search, layer: int) -> tuple[Variant, ...]:
    """The variants of a layer that need weights of their own."""
    space = variants_of(search.space, search.parent.shape, layer)
    return tuple(variant for variant in space if variant.trained)


def distill_piece(
    search: Search, ids: Ids, layer: int, variants: Sequence[Variant], sums: str, stretch: Stretch | None = None
) -> Piece:
    """The piece that trains one layer, or a stretch of that.

    `sums` is a handle to what `calibrate` gave, "" where no start needs any; it is determined by the key.
    """
    job = search.job
    settings = asdict(local_settings(job, ids.shape[1]))
    depends: dict[str, Any] = {
        "ids": ids.digest,
        "layer": layer,
        "variants": [variant.label for variant in variants],
        "settings": settings,
        "batch_size": job.distill.batch_size,
        "seed": job.seed,
    }
    if stretch is not None:
        settings["steps"] = stretch.end - stretch.first
        if stretch.first:
            weights = {variant.label: stretch.before.digests[layer][variant.label] for variant in variants}
            depends["before"] = {"steps": stretch.first, "weights": weights}
    outcomes = keeps_outcomes(search)
    handles: dict[str, Any] = {
        "store": search.workspace.url,
        "scratch": str(scratch_of(search, ids, outcomes).folder),
        "outcomes": outcomes,
        "sums": sums,
        "shape": list(ids.shape),
    }
    handles["ranges"] = ids.shards
    return search.piece(DISTILL, f"layer {layer:04d}", {**depends, **handles}, depends)


def local_settings(job: Job, length: int) -> LocalSettings:
    """The trainer's settings from the job, for sequences of a length; the last batches of the text are held out."""
    chosen = job.distill
    return LocalSettings(
        steps=max(1, chosen.tokens // (length * chosen.batch_size)),
        learning_rate=chosen.learning_rate,
        rate=chosen.rate,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        through=chosen.through,
    )


DISTILL = Stage("distill", 5, distill_layer)


def library_of(records: Sequence[Record]) -> Library:
    """Digests of trained weights by layer and label; a layer may have several records."""
    held: dict[int, dict[str, str]] = {}
    for record in records:
        held.setdefault(int(record.values["layer"]), {}).update(record.blobs)
    return Library(held)


def failures(records: Sequence[Record]) -> list[tuple[int, str, str]]:
    """(layer, label, reason) of the variants whose training diverged; they are not offered, unless an earlier stretch
    of it did not."""
    library = library_of(records)
    return [
        (layer, label, result["reason"])
        for record in records
        for layer in (int(record.values["layer"]),)
        for label, result in record.values["variants"].items()
        if result["status"] == "failed" and not library.has(layer, label)
    ]


def variant_tokens(records: Sequence[Record], job: Job) -> int:
    """Tokens that variants were trained on, of all of them together."""
    steps = sum(len(result["curve"]) for record in records for result in record.values["variants"].values())
    return steps * job.distill.batch_size * job.data.distill.sequence_length
