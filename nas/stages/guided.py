"""distill, guided: a part of the training for every variant, more of it for those that may still enter a solution.

Successive halving (arXiv 1502.07943) whose choice is the program's own: after each part the blocks that changed are
scored on some of the score text, every unfinished variant is credited with what its kind has gained at most from part
to part, and the program is solved for these scores under budgets around the job's (tables/optimistic.py). What its
solutions hold is trained on; it ends when they hold nothing unfinished. What is decided follows from records alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from inlay.cluster.pieces import Record
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables
from inlay.nas.loop.texts import first_of
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.report.sentences import counted
from inlay.nas.stages.beside import first_variants
from inlay.nas.stages.distill import (
    Stretch,
    build_library,
    forget_states,
    library_of,
    local_settings,
    variant_tokens,
)
from inlay.nas.stages.score import layer_blocks, offered, offered_caches, offered_ends, score_chosen
from inlay.nas.stages.scoring import weigh_formats
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, kind_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.optimistic import best_around, optimistic
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import parse_variant

PARTS = (1 / 16, 1 / 4, 1.0)
"""Where the parts of a training end."""
FEWEST_STEPS = 6
"""A part that would be shorter is none of its own."""
JUDGED_SHARE, FEWEST_SEQUENCES = 4, 16
"""One in so many sequences of the score text judges the parts, and so many at least."""
UNTRIED = 0.5
"""The share of its KL that a variant is taken to lose from part to part where the best solutions have none that could
tell."""

Place = tuple[int, str]
"""A layer, and the label of what is trained there."""


@dataclass(frozen=True)
class Trained:
    """What local distillation came to.

    Args:
        records: of the pieces; of a variant that was trained in parts the later one counts.
        left: why variants were not trained to the end, by layer and label.
        note: what people are told of that.
    """

    records: list[Record]
    left: Mapping[Place, str] = field(default_factory=dict)
    note: str = ""


def part_ends(steps: int) -> list[int]:
    """The steps of a training behind which its parts end; the last one is its own end."""
    ends = [round(steps * share) for share in PARTS[:-1]]
    return [*(end for end in ends if end >= FEWEST_STEPS), steps]


def train_guided(search: Search, texts: Texts, costs: CostTable) -> Trained:
    """Trains every variant for a first part, and those to the end that a best solution may have."""
    guide = _Guide(search, texts, costs)
    wanted: list[Place] = [(layer, v.label) for layer, held in enumerate(first_variants(search)) for v in held]
    rounds = 0
    while wanted:
        guide.train(wanted)
        wanted, rounds = guide.unfinished(), rounds + 1
    forget_states(search, texts.distill)
    return guide.trained(rounds)


class _Guide:
    """How far every variant is, and what is known of it."""

    def __init__(self, search: Search, texts: Texts, costs: CostTable) -> None:
        self.search, self.texts, self.costs = search, texts, costs
        self.ends = part_ends(local_settings(search.job, texts.distill.shape[1]).steps)
        self.variants = first_variants(search)
        number = max(FEWEST_SEQUENCES, texts.score.shape[0] // JUDGED_SHARE)
        self.judging = first_of(texts.score, number, search.workspace.store)
        self.records: list[Record] = []
        self.parts: dict[Place, int] = {}
        """How many each has behind it."""
        self.scores: ScoreTable | None = None
        self.gains: dict[str, float] = {}
        """The largest share of its KL that any variant has lost from part to part, by kind."""
        self.guess = 0.0
        """The same where nothing has gone on yet."""

    @property
    def library(self) -> Library:
        return library_of(self.records)

    def train(self, wanted: Sequence[Place]) -> None:
        """The next part of each, and what it led to."""
        for part in sorted({self.parts.get(place, 0) for place in wanted}):
            due = {place for place in wanted if self.parts.get(place, 0) == part}
            chosen = [[v for v in held if (layer, v.label) in due] for layer, held in enumerate(self.variants)]
            stretch = Stretch(self.ends[part - 1] if part else 0, self.ends[part], self.library)
            self.records += build_library(self.search, self.texts.distill, chosen, stretch)
        for place in wanted:
            self.parts[place] = self.parts.get(place, 0) + 1
        if len(self.ends) > 1:
            self._score(wanted)

    def unfinished(self) -> list[Place]:
        """What the best solutions hold whose training is not at its end; all of it where there is no solution."""
        if self.scores is None:
            return []
        found = self._held()
        if not (found or self.gains):
            self.guess = UNTRIED
            found = self._held()
        return found

    def may_lose(self, layer: int, label: str) -> float:
        """The share of its KL that the rest of its training may take from what stands at a layer."""
        missing = len(self.ends) - self.parts.get((layer, _bare(label)), len(self.ends))
        most = self.gains.get(kind_of(label), max(self.gains.values(), default=self.guess))
        return 1.0 - (1.0 - most) ** missing

    def trained(self, rounds: int) -> Trained:
        """What it came to."""
        step = self.search.job.distill.batch_size * self.texts.distill.shape[1]
        left = {
            (layer, label): f"left after {self.ends[part - 1] * step:,} of {self.ends[-1] * step:,} tokens: with "
            f"{100 * self.may_lose(layer, label):.0f} % less KL, the most that is to be expected of its kind, no best "
            "solution around the budget has it"
            for (layer, label), part in self.parts.items()
            if part < len(self.ends) and self.library.has(layer, label)
        }
        every = len(self.parts) * self.ends[-1] * step
        if not every or len(self.ends) == 1:
            return Trained(self.records)
        share = variant_tokens(self.records, self.search.job) / every
        note = (
            f"{len(self.parts) - len(left)} to the end in {counted(rounds, 'round')}, {100 * share:.0f} % of the tokens"
        )
        return Trained(self.records, left, note)

    def _held(self) -> list[Place]:
        """The same for what variants are taken to lose now."""
        assert self.scores is not None
        job = self.search.job
        ends, caches = (dict.fromkeys(told(self.search), 0.0) for told in (offered_ends, offered_caches))
        scores = replace(optimistic(self.scores, self.may_lose), ends=ends, caches=caches)
        tokens = {each.name: each.batch_size * each.generate for each in job.hardware.scenarios}
        solutions = best_around(Tables(scores, self.costs, tokens).problem(job.budget))
        library, left = self.library, {place for place, part in self.parts.items() if part < len(self.ends)}
        left = {(layer, label) for layer, label in left if library.has(layer, label)}
        if not solutions:
            return sorted(left)
        held = {
            (layer, _bare(label)) for blocks in solutions for layer, block in enumerate(blocks) for label in block[:2]
        }
        return sorted(held & left)

    def _score(self, changed: Sequence[Place]) -> None:
        """Scores what was trained; the first time all that there is, and some pairs."""
        library, every = self.library, self.scores is None
        weigh_formats(self.search, self.texts)
        blocks: dict[int, Sequence[tuple[str, str]]] = {}
        for layer in range(self.search.parent.shape.num_layers):
            due = {label for at, label in changed if at == layer}
            held = [v.block for v in offered(self.search, layer, library) if v.bare.label in due]
            blocks[layer] = layer_blocks(self.search, layer, library) if every else sorted(held)
        rows = score_chosen(self.search, self.judging, library, {layer: held for layer, held in blocks.items() if held})
        found = ScoreTable.of(one.row() for one in rows)
        if self.scores is None:
            self.scores = found
            return
        before = self.scores.measured
        for layer, scored in found.measured.items():
            for block, nats in scored.items():
                self._learn(block, before[layer][block], nats)
        self.scores = replace(
            self.scores, measured={layer: {**own, **found.measured.get(layer, {})} for layer, own in before.items()}
        )

    def _learn(self, block: Block, before: float, after: float) -> None:
        (label,) = set(block) - set(PARENT_BLOCK)
        gain = max(0.0, 1.0 - after / before) if before > 0 else 0.0
        self.gains[kind_of(label)] = max(self.gains.get(kind_of(label), 0.0), gain)


def _bare(label: str) -> str:
    return parse_variant(label).bare.label
