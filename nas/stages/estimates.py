"""Estimated scores: where nothing is trained, a real model's formats are ranked in minutes.

All formats of all subblocks are estimated from one backward pass; the true KL of a few blocks, spread over all ranks,
sets the scale of each format and says how far estimates are off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from inlay.nas.formats.by_tensor import form_of, forms_in
from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.estimates import estimate_rounding
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks
from inlay.nas.variants import Variant, parse_variant, variants_of

ESTIMATE = Stage("estimate", 3, estimate_rounding)
CHECKED = 8
"""Blocks of one format each whose true KL is taken beside their estimates."""
CHECKED_MIXES = 4
"""The same of those whose matrices differ."""


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


def estimate_matrices(search: Search, ids: Ids) -> list[dict[str, dict[str, float]]]:
    """What rounding each matrix costs, nats a token: of every layer by the label of what rounds all of its subblock
    alike, and by the matrix' name."""
    shape = search.parent.shape
    labels = [
        [each.label for each in variants_of(search.job.space, shape, layer) if each.is_own and not each.is_parent]
        for layer in range(shape.num_layers)
    ]
    pieces = []
    for shard, rows in enumerate(ids.shards):
        depends = {"ids": ids.digest, "rows": list(rows), "labels": labels, "inputs": search.inputs}
        arguments = {"store": search.workspace.url, **depends}
        pieces.append(search.piece(ESTIMATE, f"shard {shard:05d}", arguments, depends))
    records = search.run(pieces, "estimates of all formats", "shards")
    tokens = sum(record.values["tokens"] for record in records)
    parts = [record.values["nats"] for record in records]
    return [
        {
            label: {name: sum(part[layer][label][name] for part in parts) / tokens for name in parts[0][layer][label]}
            for label in own
        }
        for layer, own in enumerate(labels)
    ]


def estimate_blocks(search: Search, ids: Ids) -> tuple[list[Estimated], float]:
    """Every format, and every mix that is offered, of every subblock, sorted by layer and label; and the median of
    |estimate / true KL - 1|."""
    nats, shape = estimate_matrices(search, ids), search.parent.shape
    found: dict[tuple[int, str], ByForm] = {}
    for layer, told in enumerate(nats):
        for variant in variants_of(search.space, shape, layer):
            if variant.form is not None:
                found[layer, variant.label] = _by_form(variant, told)
    return _checked(search, ids, found)


ByForm = dict[str, float]
"""What the matrices of a subblock cost that are stored in each format, nats a token."""


def _by_form(variant: Variant, told: Mapping[str, Mapping[str, float]]) -> ByForm:
    found: dict[str, float] = {}
    for form in forms_in(str(variant.form)):
        for name, nats in told[replace(variant, form=form).label].items():
            if form_of(str(variant.form), name) == form:
                found[form] = found.get(form, 0.0) + nats
    return found


def _checked(search: Search, ids: Ids, found: Mapping[tuple[int, str], ByForm]) -> tuple[list[Estimated], float]:
    sums = {key: sum(own.values()) for key, own in found.items()}
    alike = _spread({key: sums[key] for key, own in found.items() if len(own) == 1}, CHECKED)
    chosen = [*alike, *_spread({key: sums[key] for key, own in found.items() if len(own) > 1}, CHECKED_MIXES)]
    own: Blocks = tuple([PARENT_BLOCK] * search.parent.shape.num_layers)
    changed = [(*own[:layer], _block(label), *own[layer + 1 :]) for layer, label in chosen]
    true = dict(zip(chosen, true_scores(search, ids, Library({}), changed, "true KL of some of them"), strict=True))
    scales = _scales({key: true[key].kl_nats / sums[key] for key in alike if sums[key] > 0})
    scaled = {
        key: sum(nats * scales.get(form, scales[None]) for form, nats in own.items()) for key, own in found.items()
    }
    errors = [abs(scaled[key] / true[key].kl_nats - 1) for key in chosen if true[key].kl_nats > 0]
    rows = [Estimated(layer, _block(label), scaled[layer, label], true.get((layer, label))) for layer, label in found]
    return sorted(rows, key=lambda one: (one.layer, one.block)), median(errors) if errors else 0.0


def _spread(nats: Mapping[tuple[int, str], float], number: int) -> list[tuple[int, str]]:
    """So many of them, spread over all ranks."""
    ranked = sorted(nats, key=lambda key: (nats[key], key))
    places = sorted({round(place * (len(ranked) - 1) / (number - 1)) for place in range(number)}) if ranked else ()
    return [ranked[place] for place in places]


def _scales(ratios: Mapping[tuple[int, str], float]) -> dict[str | None, float]:
    """True KL over estimate by format, and of all of them together."""
    by_form: dict[str | None, list[float]] = {}
    for (_, label), ratio in ratios.items():
        by_form.setdefault(parse_variant(label).form, []).append(ratio)
    return {None: median(ratios.values()) if ratios else 1.0} | {form: median(own) for form, own in by_form.items()}


def _block(label: str) -> Block:
    is_attention = parse_variant(label).slot == "attention"
    return (label, PARENT_BLOCK[1]) if is_attention else (PARENT_BLOCK[0], label)
