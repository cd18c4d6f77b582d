"""score: the KL that each replacement of one block costs, and of some pairs, from which γ is fitted.

One piece a layer: its variants fork from the parent's boundary before it and run to the end together, so no layer
before the fork is ever computed again (Puzzle, arXiv 2411.19146, section 4: replace-1-block scores).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.cluster.pieces import Piece, Record
from inlay.cluster.records import kept_records
from inlay.nas.engines.registry import kv_formats_of
from inlay.nas.loop.search import Search
from inlay.nas.loop.spans import scratch_of, spans_with_boundaries
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.comparison import Comparison, compare_architectures, summaries, tensors_of
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.standard_error import Values
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library, used_weights
from inlay.nas.tables.architecture import (
    OWN_CACHE,
    PARENT_BLOCK,
    Block,
    Blocks,
    cache_label,
    choice_label,
    ends_label,
    spread,
)
from inlay.nas.variants import Variant, ends_forms, variants_of

SCORE = Stage("score", 3, compare_architectures)
PARENT = {"attention": "attention:parent", "ffn": "ffn:parent"}


@dataclass(frozen=True)
class ScoredBlock:
    """The parent with one block replaced, or with its ends or its cache in another format, against the parent.

    Ends and cache are a label alone, at the last layer, with which they are chosen. Where the parent is a child of an
    original, `comparison` is against that one, and `base` is what the parent itself is against it.
    """

    layer: int
    block: Block
    comparison: Comparison
    base: Comparison | None = None

    def row(self) -> dict[str, Any]:
        """A row of the score table: `layer, attention, ffn` and the figures of the comparison; with a base the KL and
        its error are those of what the block adds to it, which is there as `base_kl_nats`."""
        figures: dict[str, Any] = self.comparison.figures()
        if self.base is not None:
            added = self.comparison.above(self.base)
            figures |= {"kl_nats": added.nats, "standard_error": added.standard_error}
            figures |= {"base_kl_nats": self.base.kl_nats}
        if len(self.block) == 1:
            return {"layer": -1, "attention": "", "ffn": self.block[0], **figures}
        attention, ffn = self.block
        return {"layer": self.layer, "attention": attention, "ffn": ffn, **figures}

    @property
    def added_N(self) -> Values:
        """What the block adds to the KL of each sequence."""
        return self.comparison.kl_N if self.base is None else self.comparison.kl_N - self.base.kl_N


def score_blocks(search: Search, ids: Ids, library: Library) -> list[ScoredBlock]:
    """Scores every offered variant of every layer, and the pairs; sorted by layer and label."""
    num_layers = search.parent.shape.num_layers
    blocks = {layer: layer_blocks(search, layer, library) for layer in range(num_layers)}
    return score_chosen(search, ids, library, blocks) + score_whole(search, ids, library)


def score_beside(search: Search, ids: Ids, library: Library) -> list[ScoredBlock]:
    """Scores what stands beside one attention only, each with that one, wherever it was trained."""
    offers = {layer: offered(search, layer, library) for layer in range(search.parent.shape.num_layers)}
    blocks = {layer: sorted({v.block for v in held if v.beside is not None}) for layer, held in offers.items()}
    return score_chosen(search, ids, library, {layer: held for layer, held in blocks.items() if held})


def score_chosen(
    search: Search, ids: Ids, library: Library, blocks: Mapping[int, Sequence[tuple[str, str]]]
) -> list[ScoredBlock]:
    """The scores of these blocks by layer, in that order."""
    pieces = {layer: score_piece(search, ids, layer, held, library) for layer, held in blocks.items()}
    if not pieces:
        return []
    kept = kept_records(search.workspace.store, [*pieces.values()])
    missing = [layer for layer, piece in pieces.items() if piece.key not in kept]
    for span in spans_with_boundaries(search, ids, missing, of_layers=len(pieces)):
        search.part(span.share, 1)
        search.run([pieces[layer] for layer in span.layers if layer in missing], "KL of blocks", "layers")
    records = dict(zip(pieces, search.run([*pieces.values()]), strict=True))
    return [one for layer, held in blocks.items() for one in _scored(search, layer, held, records[layer])]


def offered_ends(search: Search) -> list[str]:
    """Labels of embedding and head in other formats than the whole file's; none where the job gives a cost table."""
    if not search.engine.stores_ends_apart or search.job.hardware.costs is not None:
        return []
    return [ends_label(form) for form in ends_forms(search.job.space, search.parent.shape)]


def offered_caches(search: Search) -> list[str]:
    """Labels of caches for keys and values that may be chosen beside the search's own."""
    return [cache_label(form) for form in kv_formats_of(search.job.hardware)[1:]]


def score_whole(search: Search, ids: Ids, library: Library) -> list[ScoredBlock]:
    """What is chosen once for the whole model: embedding and head in each of their formats, and every cache that rounds
    keys and values, by true KL; the search's own cache too where it does."""
    own = [PARENT_BLOCK] * search.parent.shape.num_layers
    plain = (cache_label(search.engine.kv_formats[0]),) if search.cache_of() else ()  # of one change alone
    scored = {label: (label, *plain) for label in offered_ends(search)}
    scored |= {label: (label,) for label in offered_caches(search)}
    scored |= {OWN_CACHE: ()} if search.cache_of() else {}
    if not scored:
        return []
    what = "KL of what the whole model is stored in"
    base = None
    if search.original is not None:
        base = true_scores(search, ids, library, [(*own[:-1], (*PARENT_BLOCK, *plain))], what)[0]
    changed: list[Blocks] = [(*own[:-1], (*PARENT_BLOCK, *labels)) for labels in scored.values()]
    found = true_scores(search, ids, library, changed, what)
    return [ScoredBlock(len(own) - 1, (label,), one, base) for label, one in zip(scored, found, strict=True)]


def layer_blocks(search: Search, layer: int, library: Library) -> list[tuple[str, str]]:
    """(attention, ffn) labels scored at one layer: each variant where it can stand alone, then its pairs.

    A layer that offers nothing has the parent's own block, so that every layer is in the table.
    """
    singles = offered(search, layer, library)
    if not singles:
        return [(PARENT["attention"], PARENT["ffn"])]
    return sorted({v.block for v in singles}) + pairs_at(search, layer, singles)


def offered(search: Search, layer: int, library: Library) -> list[Variant]:
    """The layer's variants that can be chosen beside the parent's own: untrained kinds and those that trained."""
    space = variants_of(search.space, search.parent.shape, layer)
    return [v for v in space if not v.is_parent and (not v.bare.trained or library.has(layer, v.bare.label))]


def pairs_at(search: Search, layer: int, singles: Sequence[Variant]) -> list[tuple[str, str]]:
    """The layer's share of `score.pairs`, drawn from the job's seed alone; spread evenly over the layers."""
    num_layers, wanted = search.parent.shape.num_layers, search.job.score.pairs
    share = wanted * (layer + 1) // num_layers - wanted * layer // num_layers
    ffns = [v for v in singles if v.slot == "ffn" and v.beside is None]
    attentions = [v for v in singles if v.slot == "attention" and v.beside is None]
    both = sorted((a.label, f.label) for a in attentions for f in ffns)
    return sorted(random.Random(f"{search.job.seed} pairs {layer}").sample(both, min(share, len(both))))


def score_piece(search: Search, ids: Ids, layer: int, blocks: Sequence[tuple[str, str]], library: Library) -> Piece:
    """The piece that scores one layer's blocks over the whole score text."""
    num_layers = search.parent.shape.num_layers
    compared = _compared(search, blocks)
    architectures = [placed(num_layers, layer, block) for block in compared]
    held = used_weights(library, architectures) | {str(layer): dict(library.digests.get(layer, {}))}
    scratch = scratch_of(search, ids)
    return search.piece(
        SCORE,
        f"layer {layer:04d}",
        {
            "store": search.workspace.url,
            "ids": ids.digest,
            "rows": ids.shards,
            "shards": list(range(len(ids.shards))),
            "num_shards": len(ids.shards),
            "scratch": str(scratch.folder),
            "first_layer": layer,
            "architectures": architectures,
            "labels": [choice_label(block) for block in compared],
            "library": held,
        },
        {
            "ids": ids.digest,
            "blocks": [list(block) for block in compared],
            "library": held,
            **search.rounding([blocks]),
        },
    )


def placed(num_layers: int, layer: int, block: Block) -> Blocks:
    """The parent with one choice made otherwise, which begins at a layer."""
    filled = spread(block)
    return (*(PARENT_BLOCK,) * layer, *filled, *(PARENT_BLOCK,) * (num_layers - layer - len(filled)))


def _scored(search: Search, layer: int, blocks: Sequence[Block], record: Record) -> list[ScoredBlock]:
    labels = [choice_label(block) for block in _compared(search, blocks)]
    found = summaries(labels, [tensors_of(search.workspace.store.blob_path(record.blobs["sequences"]))])
    base = None if search.original is None else found[labels[-1]]
    return [ScoredBlock(layer, block, found[label], base) for block, label in zip(blocks, labels, strict=False)]


def _compared(search: Search, blocks: Sequence[Block]) -> list[Block]:
    """The blocks that one piece compares with the reference: where that is not the parent, it too, as the last."""
    if search.original is None:
        return [*blocks]
    return [*(block for block in blocks if block != PARENT_BLOCK), PARENT_BLOCK]
