"""The candidates of a search: predicted, true and measured figures of each, and what the rounds brought."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inlay.nas.loop.excess import Excess, excess_of, within
from inlay.nas.loop.ridge import fit_factors
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.telling import Telling
from inlay.nas.loop.time_corrections import paced
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.loop.true_times import judged_times
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.measuring import Measured
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks, architecture_of, identify
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import ScoreTable
from inlay.solver import Problem

SMALLEST_KL = 1e-9
CORRECTION_WEIGHT = 1e-2
LEAST_CORRECTION = 0.05
MISSED_AT_MOST = 3
"""Candidates of one round that may be measured to miss the budget before the costs are corrected."""


@dataclass
class Candidate:
    """An architecture of the pool with all that is known of it; KL in nats per token.

    Args:
        predicted_kl: the sum of the scores, as corrected when it was found.
        true: against the parent, as assembled.
        probe_kl: its KL after a short recovery, where it had one.
    """

    architecture: Blocks
    origin: str
    round: int
    predicted_kl: float
    true: Comparison
    probe_kl: float | None = None
    measured: dict[str, Measured] | None = None
    excesses: list[Excess] | None = None

    @property
    def id(self) -> str:
        """Name of the architecture."""
        return identify(self.architecture)


@dataclass
class Pool:
    """All candidates, with scores and costs as corrected by their true KL and their measured times."""

    search: Search
    ids: Ids
    library: Library
    tables: Tables
    scores: ScoreTable = field(init=False)
    costs: CostTable = field(init=False)
    candidates: list[Candidate] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    telling: Telling = field(init=False)

    def __post_init__(self) -> None:
        self.scores, self.costs = self.tables.scores, self.tables.costs
        self.telling = Telling(self.search, self.costs)

    def problem(self, scores: ScoreTable | None = None) -> Problem:
        """The problem under the corrected costs and the corrected (or given) scores."""
        return replace(self.tables, scores=scores or self.scores, costs=self.costs).problem(self.search.job.budget)

    def solve(self) -> list[Candidate]:
        """Solves for a diverse pool and takes the true KL of what is new.

        Raises:
            InfeasibleError: nothing meets the limits.
        """
        chosen = self.search.job.solve
        found = solve_pool(self.problem(), chosen.pool, chosen.min_difference, chosen.time_limit)
        architectures: list[Blocks] = [tuple(architecture_of(solution.labels)) for solution in found]
        self.telling.tell("predicted", self.scores.predict(architectures[0]), architectures[0])
        return self.add(architectures, "pool")

    def add(self, architectures: Sequence[Blocks], origin: str) -> list[Candidate]:
        """Takes the true KL of architectures that are new, as one round; the new candidates."""
        held = {candidate.architecture for candidate in self.candidates}
        new = [a for a in dict.fromkeys(architectures) if a not in held]
        if not new:
            return []
        start, number = time.monotonic(), len(self.rounds)
        best_before = min((c.true.kl_nats for c in self.candidates), default=None)
        found = [
            # Dropped layers need not be in the search space: nothing predicts them, so they are what they were seen as.
            Candidate(a, origin, number, self.scores.predict(a) if self.knows(a) else true.kl_nats, true)
            for a, true in zip(new, true_scores(self.search, self.ids, self.library, new), strict=True)
        ]
        self.candidates += found
        for candidate in self.by_kl():
            if self.may_fit(candidate):
                self.telling.tell("true", candidate.true.kl_nats, candidate.architecture, candidate.measured)
                break
        best, best_new = self.by_kl()[0].true.kl_nats, min(found, key=lambda c: (c.true.kl_nats, c.id))
        self.rounds.append(
            {
                "round": number,
                "origin": origin,
                "tried": len(new),
                "best_kl_nats": best,
                "gain_nats": 0.0 if best_before is None else best_before - best,
                "prediction_error": best_new.predicted_kl / max(best_new.true.kl_nats, SMALLEST_KL) - 1,
                "seconds": time.monotonic() - start,
            }
        )
        return found

    def correct(self) -> None:
        """Corrects the scores of the blocks that candidates hold, so that their sums come nearer to the true KL."""
        base = replace(self.scores, factors={})
        seen = [c for c in self.candidates if self.knows(c.architecture)]
        terms: list[dict[tuple[int, Block], float]] = [
            {
                (layer, block): base.score(layer, block)
                for layer, block in enumerate(candidate.architecture)
                if block != PARENT_BLOCK
            }
            for candidate in seen
        ]
        true = [max(candidate.true.kl_nats, SMALLEST_KL) for candidate in seen]
        factors = fit_factors(terms, true, CORRECTION_WEIGHT, LEAST_CORRECTION)
        self.scores = replace(self.scores, factors=factors)

    def knows(self, architecture: Blocks) -> bool:
        """Whether the scores predict it: dropped layers need not be in the search space."""
        return all(block in self.scores.blocks(layer) for layer, block in enumerate(architecture))

    def by_kl(self) -> list[Candidate]:
        """All of them, least true KL first."""
        return sorted(self.candidates, key=lambda c: (c.true.kl_nats, c.id))

    def judge(self, candidate: Candidate) -> bool:
        """Whether it meets the budget when measured; times are taken once."""
        if candidate.excesses is None:
            candidate.measured = judged_times(self.search, self.tables.costs, candidate.architecture)
            candidate.excesses = excess_of(self.search, self.tables.costs, candidate.architecture, candidate.measured)
        return within(candidate.excesses)

    def judge_some(self, candidates: Iterable[Candidate], wanted: int) -> tuple[list[Candidate], int]:
        """The first `wanted` that meet the budget when measured, and how many before them do not.

        Those that the corrected costs rule out are not measured: what was observed of others speaks against them; nor
        is any more once `MISSED_AT_MOST` missed.
        """
        found: list[Candidate] = []
        missed = 0
        for candidate in candidates:
            if len(found) == wanted or missed == MISSED_AT_MOST:
                break
            if not self.may_fit(candidate):
                continue
            if self.judge(candidate):
                found.append(candidate)
            else:
                missed += 1
        return found, missed

    def may_fit(self, candidate: Candidate) -> bool:
        """Whether what was measured, or else the costs as corrected, meets the budget."""
        if candidate.excesses is not None:
            return within(candidate.excesses)
        return within(excess_of(self.search, self.costs, candidate.architecture, None))

    def learn_times(self) -> None:
        """Corrects the costs by all that was measured."""
        judged = [(c.architecture, c.measured) for c in self.candidates if c.measured is not None]
        self.costs = paced(self.tables.costs, self.search.job.budget, judged)

    def reached(self) -> str:
        """What the nearest measured candidate reached."""
        nearest = min((c for c in self.candidates if c.excesses), key=_worst)
        parts = [
            f"{e.field} is {100 * (e.ratio - 1):.1f} % over its limit" for e in nearest.excesses or () if e.ratio > 1
        ]
        return f"the nearest, {nearest.id}: {'; '.join(parts)}"


def _worst(candidate: Candidate) -> float:
    return max(e.ratio for e in candidate.excesses or ())
