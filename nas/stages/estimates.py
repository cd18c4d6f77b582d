"""Estimated scores: where nothing is trained, a real model's formats are ranked in minutes.

All formats of all subblocks are estimated from one backward pass; the true KL of a few blocks, spread over all ranks,
sets the scale of each format and says how far estimates are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.estimates import estimate_rounding
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks
from inlay.nas.variants import parse_variant, variants_of

ESTIMATE = Stage("estimate", 2, estimate_rounding)
CHECKED = 8
"""Blocks whose true KL is taken beside their estimates."""


@dataclass(frozen=True)
class Estimated:
    """The parent with one block rounded, by its estimate; `true` where its KL was taken too."""

    layer: int
    block: Block
    kl_nats: float
    true: Comparison | None

    def row(self) -> dict[str, Any]:
        """A row of the score table; the true KL where it is known."""
        attention, ffn = self.block
        place = {"layer": self.layer, "attention": attention, "ffn": ffn, "estimated_nats": self.kl_nats}
        if self.true is not None:
            return {**place, **self.true.figures()}
        nothing = dict.fromkeys(("standard_error", "lm_loss_change", "top1_agreement", "perplexity"))
        return {**place, "kl_nats": self.kl_nats, **nothing}


def are_estimated(job: Job) -> bool:
    """Whether scores are estimated: where nothing is trained, so that all that changes is rounding."""
    return job.space.formats_alone and not job.recover.tokens and job.original is None


def estimate_blocks(search: Search, ids: Ids) -> tuple[list[Estimated], float]:
    """Every format of every subblock, sorted by layer and label; and the median of |estimate / true KL - 1|."""
    shape = search.parent.shape
    labels = [
        [variant.label for variant in variants_of(search.job.space, shape, layer) if not variant.is_parent]
        for layer in range(shape.num_layers)
    ]
    pieces = []
    for shard, rows in enumerate(ids.shards):
        depends = {"ids": ids.digest, "rows": list(rows), "labels": labels, "inputs": search.inputs}
        arguments = {"store": search.workspace.url, **depends}
        pieces.append(search.piece(ESTIMATE, f"shard {shard:05d}", arguments, depends))
    records = search.run(pieces, "estimates of all formats", "shards")
    tokens = sum(record.values["tokens"] for record in records)
    found: dict[tuple[int, str], float] = {}
    for layer, own in enumerate(labels):
        for place, label in enumerate(own):
            found[layer, label] = sum(record.values["nats"][layer][place] for record in records) / tokens
    return _checked(search, ids, found)


def _checked(search: Search, ids: Ids, found: dict[tuple[int, str], float]) -> tuple[list[Estimated], float]:
    ranked = sorted(found, key=lambda key: (found[key], key))
    places = sorted({round(number * (len(ranked) - 1) / (CHECKED - 1)) for number in range(CHECKED)})
    chosen = [ranked[place] for place in places]
    own: Blocks = tuple([PARENT_BLOCK] * search.parent.shape.num_layers)
    changed = [(*own[:layer], _block(label), *own[layer + 1 :]) for layer, label in chosen]
    true = dict(zip(chosen, true_scores(search, ids, Library({}), changed, "true KL of some of them"), strict=True))
    scales = _scales({key: true[key].kl_nats / found[key] for key in chosen if found[key] > 0})
    scaled = {key: value * scales.get(parse_variant(key[1]).form, scales[None]) for key, value in found.items()}
    errors = [abs(scaled[key] / true[key].kl_nats - 1) for key in chosen if true[key].kl_nats > 0]
    rows = [Estimated(layer, _block(label), scaled[layer, label], true.get((layer, label))) for layer, label in found]
    return sorted(rows, key=lambda one: (one.layer, one.block)), median(errors) if errors else 0.0


def _scales(ratios: dict[tuple[int, str], float]) -> dict[str | None, float]:
    """True KL over estimate by format, and of all of them together."""
    by_form: dict[str | None, list[float]] = {}
    for (_, label), ratio in ratios.items():
        by_form.setdefault(parse_variant(label).form, []).append(ratio)
    return {None: median(ratios.values()) if ratios else 1.0} | {form: median(own) for form, own in by_form.items()}


def _block(label: str) -> Block:
    is_attention = parse_variant(label).slot == "attention"
    return (label, PARENT_BLOCK[1]) if is_attention else (PARENT_BLOCK[0], label)
