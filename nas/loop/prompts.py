"""Parent and child continue the same prompts: the beginnings of documents that nothing has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.cluster.pieces import Piece
from inlay.nas.families.writing import added_text, plain_text, stops_of
from inlay.nas.loop.search import Search
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.continuing import continue_prompts
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Texts, load_documents

CONTINUE = Stage("continue", 1, continue_prompts)
PROMPTS = 10
PROMPT_TOKENS, ADDED_TOKENS = 32, 48
"""Of a prompt and of what is added to it, where documents and context are long enough."""


def side_by_side_on_prompts(search: Search, texts: Texts, model: TrainedModel) -> list[dict[str, Any]]:
    """Ten prompts of the report text with what parent and child add to each; fewer where there are fewer documents.

    Returns:
        Rows of `prompt`, `parent`, `child` (texts) and `same_tokens`: so many tokens are the same before they part.
    """
    store, tokenizer = search.workspace.store, search.parent.tokenizer()
    prompts = beginnings(texts.report.load(store), *load_documents(store, texts.report.documents))
    if not prompts:
        return []
    tokens = min(ADDED_TOKENS, search.parent.config.max_position_embeddings - len(prompts[0]))
    told = {"prompts": prompts, "tokens": tokens, "stops": sorted(stops_of(search.parent))}
    pieces = [
        model_piece(search, CONTINUE, "the parent's", told, None),
        model_piece(search, CONTINUE, "the child's", told, model),
    ]
    added = [record.values["added"] for record in search.run(pieces, f"{len(prompts)} prompts continued", "models")]
    return [
        {
            "prompt": plain_text(tokenizer, prompt),
            "parent": added_text(tokenizer, prompt, parent),
            "child": added_text(tokenizer, prompt, child),
            "same_tokens": _same(parent, child),
        }
        for prompt, parent, child in zip(prompts, *added, strict=True)
    ]


def model_piece(search: Search, stage: Stage, label: str, told: dict[str, Any], model: TrainedModel | None) -> Piece:
    """A piece that asks one whole model; the parent without one. `told` is what else its result depends on."""
    own = told_of(model)
    depends = {**told, **own, **search.rounding([] if model is None else [model.architecture])}
    handles = {"store": search.workspace.url, **({"parent": search.reference_place} if model is None else {})}
    return search.piece(stage, label, {**told, **own, **handles}, depends)


def told_of(model: TrainedModel | None) -> dict[str, Any]:
    """What a worker is told of a whole model, or of the parent."""
    if model is None:
        return {"blob": "", "packed": "", "architecture": []}
    return model.told


def beginnings(ids_NS: NDArray[np.int32], documents_NS: NDArray[np.int32], sources_D: Sequence[int]) -> list[list[int]]:
    """The first tokens of documents, as many of each, from all over the text and from its sources in proportion.

    Documents that begin in one sequence and go on behind the prompt; where most are shorter, half of a middling one.
    """
    length = ids_NS.shape[1]
    numbers_D, starts_D, sizes_D = np.unique(documents_NS.ravel(), return_index=True, return_counts=True)
    prompt = min(PROMPT_TOKENS, length // 2, max(2, int(np.median(sizes_D)) // 2))
    found = []
    for number, start, size in zip(numbers_D, starts_D, sizes_D, strict=True):
        row, place = divmod(int(start), length)
        if place + prompt <= length and size > prompt:
            found.append((sources_D[number], ids_NS[row, place : place + prompt].tolist()))
    found.sort(key=lambda each: each[0])
    places = np.linspace(0, max(0, len(found) - 1), PROMPTS).round().astype(int).tolist()
    return [found[place][1] for place in dict.fromkeys(places) if place < len(found)]


def _same(first: list[int], second: list[int]) -> int:
    apart = (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(apart, min(len(first), len(second)))
