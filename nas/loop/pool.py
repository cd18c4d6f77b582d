"""The candidates of a search: predicted, true and measured figures of each, and what the rounds brought."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inlay.nas.loop.baselines import BASELINES
from inlay.nas.loop.excess import Excess, excess_of, is_measured, within
from inlay.nas.loop.ridge import fit_factors
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.telling import Telling
from inlay.nas.loop.time_corrections import paced
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.loop.true_times import judged_times
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.comparison import Comparison, Difference
from inlay.nas.pieces.measuring import Measured
from inlay.nas.pieces.standard_error import Values
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks, architecture_of, choices_of, identify
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import BASE, ScoreTable
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
        miss: how far the prediction was above it, on the same text.
        probe_kl: its KL after a short recovery, where it had one.
        probed: its weights after it.
    """

    architecture: Blocks
    origin: str
    round: int
    predicted_kl: float
    true: Comparison
    miss: Difference
    probe_kl: float | None = None
    probed: TrainedModel | None = None
    measured: dict[str, Measured] | None = None
    excesses: list[Excess] | None = None

    @property
    def id(self) -> str:
        """Name of the architecture."""
        return identify(self.architecture)


@dataclass
class Pool:
    """All candidates, with scores and costs as corrected by their true KL and their measured times.

    Args:
        ids: the score text.
        scored: KL of the scored blocks sequence by sequence of that text, by (layer, block); without them the errors of
            predictions are unknown.
    """

    search: Search
    ids: Ids
    library: Library
    tables: Tables
    scored: Mapping[tuple[int, Block], Values] = field(default_factory=dict)
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
            self._candidate(a, origin, number, true)
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

    def _candidate(self, architecture: Blocks, origin: str, number: int, true: Comparison) -> Candidate:
        if not self.knows(architecture):
            # Dropped layers need not be in the search space: nothing predicts them, so they are what they were seen as.
            return Candidate(architecture, origin, number, true.kl_nats, true, Difference(0.0, None))
        predicted = self.scores.predict(architecture)
        miss = Difference(predicted - true.kl_nats, None)
        if self.scored:
            predicted_N = np.zeros_like(true.kl_N) + self.scored.get(BASE, 0.0)
            for layer, block in choices_of(architecture):
                for part, weight in self.scores.parts(layer, block).items():
                    predicted_N += weight * self.scored[layer, part]
            miss = Difference.of(predicted_N, true.kl_N)
        return Candidate(architecture, origin, number, predicted, true, miss)

    def correct(self) -> None:
        """Corrects the scores of the blocks that candidates hold, so that their sums come nearer to the true KL."""
        base = replace(self.scores, factors={})
        seen = [c for c in self.candidates if self.knows(c.architecture)]
        terms: list[dict[tuple[int, Block], float]] = [
            {
                (layer, block): base.score(layer, block)
                for layer, block in choices_of(candidate.architecture)
                if block != PARENT_BLOCK
            }
            for candidate in seen
        ]
        true = [max(candidate.true.kl_nats - base.base, SMALLEST_KL) for candidate in seen]
        factors = fit_factors(terms, true, CORRECTION_WEIGHT, LEAST_CORRECTION)
        self.scores = replace(self.scores, factors=factors)

    def knows(self, architecture: Blocks) -> bool:
        """Whether the scores predict it: dropped layers need not be in the search space."""
        return all(block in self.scores.blocks(layer) for layer, block in choices_of(architecture))

    def by_kl(self) -> list[Candidate]:
        """All of them, least true KL first."""
        return sorted(self.candidates, key=lambda c: (c.true.kl_nats, c.id))

    def judge(self, candidates: Sequence[Candidate]) -> None:
        """Measures those that were not: in turns with one parent, beside the baselines, which are timed anyhow.

        Under limits on sizes alone, which are exact, nothing is timed before the end.
        """
        new = [c for c in candidates if c.excesses is None]
        if not new:
            return
        if not any(is_measured(limit) for limit in self.search.job.budget):
            for candidate in new:
                candidate.excesses = excess_of(self.search, self.tables.costs, candidate.architecture, None)
            return
        new += [c for c in self.candidates if c.origin in BASELINES and c.excesses is None and c not in new]
        costs = self.tables.costs
        for candidate, measured in zip(
            new, judged_times(self.search, costs, [c.architecture for c in new]), strict=True
        ):
            candidate.measured = measured
            candidate.excesses = excess_of(self.search, costs, candidate.architecture, measured)

    def judge_some(self, candidates: Iterable[Candidate], wanted: int) -> tuple[list[Candidate], int]:
        """The first `wanted` that meet the budget when measured, and how many before them do not.

        As many as are still wanted are measured together. Those that the corrected costs rule out are not measured:
        what was observed of others speaks against them; nor is any more once `MISSED_AT_MOST` missed.
        """
        open_ = [candidate for candidate in candidates if self.may_fit(candidate)]
        found: list[Candidate] = []
        missed = 0
        while open_ and len(found) < wanted and missed < MISSED_AT_MOST:
            count = min(wanted - len(found), MISSED_AT_MOST - missed)
            batch, open_ = open_[:count], open_[count:]
            self.judge(batch)
            met = [candidate for candidate in batch if within(candidate.excesses or ())]
            found += met
            missed += len(batch) - len(met)
        return found, missed

    def may_fit(self, candidate: Candidate) -> bool:
        """Whether what was measured, or else the costs as corrected, meets the budget."""
        if candidate.excesses is not None:
            return within(candidate.excesses)
        return within(excess_of(self.search, self.costs, candidate.architecture, None))

    def learn_times(self) -> bool:
        """Corrects the costs by all that was measured; whether that changed more than the measurements' noise."""
        before = self.costs
        seen = [c for c in self.candidates if c.measured is not None]
        judged = [(c.architecture, c.measured) for c in seen if c.measured is not None]
        self.costs = paced(self.tables.costs, self.search.job.budget, judged)
        return any(
            abs(now.ratio - was.ratio) > true.noise
            for c in seen
            for was, now, true in zip(
                excess_of(self.search, before, c.architecture, None),
                excess_of(self.search, self.costs, c.architecture, None),
                c.excesses or (),
                strict=True,
            )
        )

    def reached(self) -> str:
        """What the nearest measured candidate reached."""
        nearest = min((c for c in self.candidates if c.excesses), key=_worst)
        parts = [
            f"{e.field} is {100 * (e.ratio - 1):.1f} % over its limit" for e in nearest.excesses or () if e.ratio > 1
        ]
        return f"the nearest, {nearest.id}: {'; '.join(parts)}"


def _worst(candidate: Candidate) -> float:
    return max(e.ratio for e in candidate.excesses or ())
