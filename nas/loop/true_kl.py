"""The true KL of whole models: of architectures as assembled, by one sweep, and of trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inlay.nas.loop.search import Search
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.comparison import Comparison, compare_architectures, evaluate_model, summaries, tensors_of
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids, load_documents
from inlay.nas.pieces.weights import Library, used_weights
from inlay.nas.report.sentences import counted
from inlay.nas.tables.architecture import Blocks, identify

TRUE = Stage("true_kl", 2, compare_architectures)
EVALUATE = Stage("evaluate", 2, evaluate_model)
GROUP = 12
"""Architectures that one piece carries through the layers together: what they share is computed once."""


def true_scores(
    search: Search, ids: Ids, library: Library, architectures: Sequence[Blocks], what: str = ""
) -> list[Comparison]:
    """The true KL of whole architectures on a text, in the order given; `what` is what people are told of it."""
    what = what or f"true KL of {counted(len(architectures), 'candidate')}"
    store = search.workspace.store
    pieces, places = [], []
    for first in range(0, len(architectures), GROUP):
        group = list(architectures[first : first + GROUP])
        labels = [identify(architecture) for architecture in group]
        held = used_weights(library, group)
        for shard, rows in enumerate(ids.shards):
            arguments = {
                "store": search.workspace.url,
                "ids": ids.digest,
                "rows": [rows],
                "shards": [shard],
                "num_shards": len(ids.shards),
                "first_layer": 0,
                "architectures": [[list(block) for block in architecture] for architecture in group],
                "labels": labels,
                "library": held,
                "documents": ids.documents,
                **search.cache_rounding,
            }
            depends = {
                "ids": ids.digest,
                "rows": list(rows),
                "architectures": arguments["architectures"],
                "library": held,
                "documents": ids.documents,
                **search.rounding(group),
                **search.cache_rounding,
            }
            pieces.append(search.piece(TRUE, f"{labels[0]}+{len(labels) - 1} shard {shard:05d}", arguments, depends))
            places.append(first)
    records = search.run(pieces, what, "shards")
    sources_D = _sources(search, ids)
    found: list[Comparison] = []
    for first in range(0, len(architectures), GROUP):
        parts = [r for r, place in zip(records, places, strict=True) if place == first]
        labels = [str(label) for label in parts[0].values["labels"]]
        blobs = [tensors_of(store.blob_path(part.blobs["sequences"])) for part in parts]
        by_label = summaries(labels, blobs, sources_D)
        found += [by_label[label] for label in labels]
    return found


def true_scores_of_models(
    search: Search, ids: Ids, models: Mapping[str, TrainedModel], what: str = ""
) -> dict[str, Comparison]:
    """Each stored model against the parent on a text, by name; `what` is what people are told of it."""
    # Models of the same weights in other formats have one blob.
    distinct = list(dict.fromkeys(models.values()))
    pieces = []
    for model in distinct:
        for shard, rows in enumerate(ids.shards):
            depends = {
                "ids": ids.digest,
                "rows": list(rows),
                "documents": ids.documents,
                **model.told,
                **search.rounding([model.architecture]),
                **search.cache_rounding,
            }
            label = f"{identify(model.architecture)} {model.blob[:8]} on {ids.digest[:8]} shard {shard:05d}"
            pieces.append(search.piece(EVALUATE, label, {**depends, "store": search.workspace.url}, depends))
    records = iter(search.run(pieces, what or f"true KL of {counted(len(distinct), 'trained model')}", "shards"))
    found, sources_D = {}, _sources(search, ids)
    for model in distinct:
        parts = [tensors_of(search.workspace.store.blob_path(next(records).blobs["sequences"])) for _ in ids.shards]
        found[model] = summaries(["model"], parts, sources_D)["model"]
    return {name: found[model] for name, model in models.items()}


def _sources(search: Search, ids: Ids) -> list[int] | None:
    """The source of each document, where the text tells its documents apart."""
    return load_documents(search.workspace.store, ids.documents)[1] if ids.documents else None
