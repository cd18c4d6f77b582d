"""Scores of blocks, and how they compose: what two changes at one layer cost together, from what each costs alone.

No torch: this is what `inlay solve` runs on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from inlay.nas.tables.architecture import OWN_CACHE, PARENT_BLOCK, Block, choices_of, is_cache, kind_of, num_layers

BASE: tuple[int, Block] = (-1, PARENT_BLOCK)
"""Where the KL of the parent itself stands among those of blocks."""
KindPair = tuple[str, str]
"""The kinds of an attention and an ffn variant, as their labels say them."""
COMMON_PAIRS = 4
"""The common γ counts as so many pairs of each kind: one or two of its own do not move a kind far."""


@dataclass(frozen=True)
class Gammas:
    """How two changes at one layer add up: s = γ (s_attention + s_ffn).

    Args:
        common: γ of all pairs.
        by_kind: γ of the pairs of kinds of which some were measured; the common one holds for the others.
    """

    common: float = 1.0
    by_kind: Mapping[KindPair, float] = field(default_factory=dict)

    def of(self, block: Block) -> float:
        """γ of a block that differs from the parent in both slots."""
        return self.by_kind.get((kind_of(block[0]), kind_of(block[1])), self.common)

    def __str__(self) -> str:
        text = f"gamma {self.common:.3f}"
        least, most = min(self.by_kind.values(), default=0.0), max(self.by_kind.values(), default=0.0)
        return f"{text} ({least:.3f} to {most:.3f} by kind)" if len(self.by_kind) > 1 else text


def fit_gammas(measured: Mapping[int, Mapping[Block, float]]) -> Gammas:
    """The medians of log(joint score / sum of the single ones): no single pair decides them; 1 without pairs.

    A kind's is drawn towards the common one, as the mean of its own pairs' median and `COMMON_PAIRS` of the common.
    """
    logs: dict[KindPair, list[float]] = {}
    for held in measured.values():
        for (attention, ffn), joint in held.items():
            if not {(attention, PARENT_BLOCK[1]), (PARENT_BLOCK[0], ffn)} <= held.keys() - {(attention, ffn)}:
                continue  # a single one, or an ffn that stands beside one attention only
            alone = held[attention, PARENT_BLOCK[1]] + held[PARENT_BLOCK[0], ffn]
            if joint > 0 and alone > 0:
                logs.setdefault((kind_of(attention), kind_of(ffn)), []).append(math.log(joint / alone))
    if not logs:
        return Gammas()
    common = median(value for own in logs.values() for value in own)
    by_kind = {
        pair: math.exp((len(own) * median(own) + COMMON_PAIRS * common) / (len(own) + COMMON_PAIRS))
        for pair, own in sorted(logs.items())
    }
    return Gammas(math.exp(common), by_kind)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of blocks at each layer, and what the pool's true KL taught about them.

    Args:
        measured: KL by layer and block, nats; a block differs from the parent at that layer only.
        gammas: how two changes at one layer add up.
        factors: corrections of single blocks by (layer, block), 1 where there is none.
        ends: KL of embedding and head in another format than the file's, by label, nats.
        caches: KL of keys and values in another format than the search's own, by label, nats.
        base: KL of the parent itself, as it runs, nats: what blocks add to. What rounding its keys and values costs
            where all models do that, and against the original where it is a child of one; else 0.
    """

    measured: Mapping[int, Mapping[Block, float]]
    gammas: Gammas = Gammas()
    factors: Mapping[tuple[int, Block], float] = field(default_factory=dict)
    ends: Mapping[str, float] = field(default_factory=dict)
    caches: Mapping[str, float] = field(default_factory=dict)
    base: float = 0.0

    @staticmethod
    def of(rows: Iterable[Mapping[str, Any]]) -> ScoreTable:
        """The table of the score stage's rows, with the gammas fitted on the pairs among them; ends and caches are at
        layer -1.

        What lowers the KL of a parent to its original counts as free.
        """
        measured: dict[int, dict[Block, float]] = {}
        whole: dict[str, float] = {}
        base = 0.0
        for row in rows:
            nats = float(row["kl_nats"])
            if "base_kl_nats" in row:
                base, nats = float(row["base_kl_nats"]), max(0.0, nats)
            if int(row["layer"]) < 0:
                whole[row["ffn"]] = nats
                continue
            measured.setdefault(int(row["layer"]), {})[row["attention"], row["ffn"]] = nats
        base += whole.pop(OWN_CACHE, 0.0)
        ends, caches = (
            {label: nats for label, nats in whole.items() if is_cache(label) is own} for own in (False, True)
        )
        return ScoreTable(measured, fit_gammas(measured), ends=ends, caches=caches, base=base)

    def blocks(self, layer: int) -> list[Block]:
        """Every block that can be chosen at a layer: the parent's own, all pairs of what was scored alone there, and
        those of an ffn that stands beside one attention only, and runs of layers that begin there. What fills the last
        layer is there with every format of the ends too, and all these with every other cache.
        """
        held = self.measured[layer]
        attention = [PARENT_BLOCK[0], *(a for a, f in held if f == PARENT_BLOCK[1] and a != PARENT_BLOCK[0])]
        ffn = [PARENT_BLOCK[1], *(f for a, f in held if a == PARENT_BLOCK[0] and f != PARENT_BLOCK[1])]
        own: list[Block] = [(a, f) for a in attention for f in ffn]
        own += [block for block in held if block[1] not in ffn]
        last = max(self.measured)
        filling = [block for block in own if layer + num_layers(block) > last]
        own += (more := [(*block, ends) for ends in self.ends for block in filling])
        return own + [(*block, cache) for cache in self.caches for block in [*filling, *more]]

    def score(self, layer: int, block: Block) -> float:
        """The score of a block, nats: measured where it was, else composed; 0 for the parent's own."""
        parts = self.parts(layer, block).items()
        return sum(w * (self.whole[part[0]] if len(part) == 1 else self.measured[layer][part]) for part, w in parts)

    @property
    def whole(self) -> Mapping[str, float]:
        """The KL of what is chosen once for the whole model, by label."""
        return {**self.ends, **self.caches}

    def parts(self, layer: int, block: Block) -> dict[Block, float]:
        """The measured blocks whose weighted sum a block's score is, with their weights; ends and cache are a label
        alone."""
        if block == PARENT_BLOCK:
            return {}
        factor = self.factors.get((layer, block), 1.0)
        if len(block) > len(PARENT_BLOCK):
            own = self.parts(layer, block[:2])
            whole = {(label,): factor for label in block[len(PARENT_BLOCK) :]}
            return {part: factor * weight for part, weight in own.items()} | whole
        if block in self.measured[layer]:
            return {block: factor}
        return dict.fromkeys(((block[0], PARENT_BLOCK[1]), (PARENT_BLOCK[0], block[1])), factor * self.gammas.of(block))

    def predict(self, architecture: Sequence[Block]) -> float:
        """The additive prediction of an architecture's KL, nats per token."""
        return self.base + sum(self.score(layer, block) for layer, block in choices_of(architecture))
