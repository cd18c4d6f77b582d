"""The true KL of whole models: of architectures as assembled, by one sweep, and of trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inlay.cluster.pieces import Piece
from inlay.nas.loop.search import Search
from inlay.nas.loop.together import Question, Records, answer_of
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
    told = what or f"true KL of {counted(len(architectures), 'candidate')}"
    return answer_of(search, true_scores_question(search, ids, library, architectures), told, "shards")


def true_scores_question(
    search: Search, ids: Ids, library: Library, architectures: Sequence[Blocks]
) -> Question[list[Comparison]]:
    """What `true_scores` asks."""
    pieces: list[Piece] = []
    by_group: list[list[Piece]] = []
    for first in range(0, len(architectures), GROUP):
        group = list(architectures[first : first + GROUP])
        labels = [identify(architecture) for architecture in group]
        held = used_weights(library, group)
        caches = [search.cache_of(architecture) for architecture in group]
        rounded = {"caches": caches} if any(caches) else {}
        by_group.append([])
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
                **rounded,
            }
            depends = {
                "ids": ids.digest,
                "rows": list(rows),
                "architectures": arguments["architectures"],
                "library": held,
                "documents": ids.documents,
                **search.rounding(group),
                **rounded,
            }
            label = f"{labels[0]}+{len(labels) - 1} shard {shard:05d}"
            by_group[-1].append(search.piece(TRUE, label, arguments, depends))
        pieces += by_group[-1]

    def read(records: Records) -> list[Comparison]:
        store, sources_D = search.workspace.store, _sources(search, ids)
        found: list[Comparison] = []
        for own in by_group:
            parts = [records[piece.key] for piece in own]
            labels = [str(label) for label in parts[0].values["labels"]]
            blobs = [tensors_of(store.blob_path(part.blobs["sequences"])) for part in parts]
            by_label = summaries(labels, blobs, sources_D)
            found += [by_label[label] for label in labels]
        return found

    return Question(pieces, read)


def true_scores_of_models(
    search: Search, ids: Ids, models: Mapping[str, TrainedModel], what: str = ""
) -> dict[str, Comparison]:
    """Each stored model against the parent on a text, by name; `what` is what people are told of it."""
    told = what or f"true KL of {counted(len(set(models.values())), 'trained model')}"
    return answer_of(search, models_question(search, ids, models), told, "shards")


def models_question(search: Search, ids: Ids, models: Mapping[str, TrainedModel]) -> Question[dict[str, Comparison]]:
    """What `true_scores_of_models` asks."""
    # Models of the same weights in other formats have one blob.
    distinct = list(dict.fromkeys(models.values()))
    by_model: dict[TrainedModel, list[Piece]] = {model: [] for model in distinct}
    for model, pieces in by_model.items():
        for shard, rows in enumerate(ids.shards):
            depends = {
                "ids": ids.digest,
                "rows": list(rows),
                "documents": ids.documents,
                **model.told,
                **search.rounding([model.architecture]),
                **search.cache_rounding(model.architecture),
            }
            label = f"{identify(model.architecture)} {model.blob[:8]} on {ids.digest[:8]} shard {shard:05d}"
            pieces.append(search.piece(EVALUATE, label, {**depends, "store": search.workspace.url}, depends))

    def read(records: Records) -> dict[str, Comparison]:
        store, found, sources_D = search.workspace.store, {}, _sources(search, ids)
        for model, own in by_model.items():
            parts = [tensors_of(store.blob_path(records[piece.key].blobs["sequences"])) for piece in own]
            found[model] = summaries(["model"], parts, sources_D)["model"]
        return {name: found[model] for name, model in models.items()}

    return Question([piece for own in by_model.values() for piece in own], read)


def _sources(search: Search, ids: Ids) -> list[int] | None:
    """The source of each document, where the text tells its documents apart."""
    return load_documents(search.workspace.store, ids.documents)[1] if ids.documents else None
