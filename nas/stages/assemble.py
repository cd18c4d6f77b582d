"""assemble: the closed loop from predictions to one kept child.

The pool's true KL corrects the scores and the solver runs again; the swaps around the best are tried with true KL; the
best by true KL whose measured times meet the budget is kept. If none does, the limits are tightened by the ratio that
was observed, at most three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inlay.nas.errors import InfeasibleError
from inlay.nas.stages.baselines import Baseline, depth, uniform
from inlay.nas.stages.candidates import Blocks, Excess, Measured, excess_of, identify, true_scores, within
from inlay.nas.stages.comparison import Comparison
from inlay.nas.stages.judging import judged_times
from inlay.nas.stages.search import Search
from inlay.nas.stages.solving import Tables, solve_pool
from inlay.nas.stages.source import Library
from inlay.nas.stages.text import Ids
from inlay.nas.tables import PARENT_BLOCK, Block, ScoreTable, architecture_of
from inlay.solver import Limit, Problem

TIGHTENINGS = 3
MEASURED_AT_MOST = 3
"""Candidates of one round whose times are measured before the limits are tightened."""
SWAPS_PAIRED = 1000
"""Single swaps, those that change the prediction least, that are tried in pairs."""
SWAP_ROUNDS = 4
NEIGHBOURS = 12
"""Swaps around the best candidate whose true KL is taken, the least predicted first."""


@dataclass
class Candidate:
    """An architecture of the pool with all that is known of it."""

    architecture: Blocks
    origin: str
    round: int
    predicted_kl: float
    true: Comparison
    measured: dict[str, Measured] | None = None
    excesses: list[Excess] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Name of the architecture."""
        return identify(self.architecture)


@dataclass(frozen=True)
class Assembled:
    """The kept child, the baselines, all candidates, and the corrected scores."""

    kept: Candidate
    baselines: dict[str, Baseline]
    candidates: list[Candidate]
    scores: ScoreTable
    rounds: list[dict[str, Any]]


def assemble(search: Search, ids: Ids, library: Library, tables: Tables) -> Assembled:
    """Runs the loop.

    Raises:
        InfeasibleError: nothing meets the budget, predicted or measured; the text says what was reached.
    """
    loop = _Loop(search, ids, library, tables)
    for _ in range(search.job.solve.corrections + 1):
        if not loop.pool():
            break
        loop.correct()
    loop.swaps()
    baselines = loop.baselines()
    for attempt in range(TIGHTENINGS + 1):
        kept = loop.first_within()
        if kept is not None:
            return Assembled(kept, baselines, loop.candidates, loop.scores, loop.rounds)
        if attempt < TIGHTENINGS:
            loop.tighten()
            with suppress(InfeasibleError):  # what is left of the pool may still meet the budget
                loop.pool()
    raise InfeasibleError(loop.reached())


class _Loop:
    def __init__(self, search: Search, ids: Ids, library: Library, tables: Tables) -> None:
        self.search, self.ids, self.library, self.tables = search, ids, library, tables
        self.scores = tables.scores
        self.factor = dict.fromkeys(("runtime", "prefill", "decode"), 1.0)
        self.candidates: list[Candidate] = []
        self.rounds: list[dict[str, Any]] = []

    def problem(self) -> Problem:
        """The problem under the corrected scores and the tightened limits."""
        problem = replace(self.tables, scores=self.scores).problem(self.search.job.budget)
        limits = [self._tight(limit) for limit in problem.limits]
        return problem.with_limits(*limits)

    def pool(self) -> bool:
        """Solves, takes the true KL of what is new, and says whether anything was."""
        chosen = self.search.job.solve
        found = solve_pool(self.problem(), chosen.pool, chosen.min_difference, chosen.time_limit)
        return self._add([tuple(architecture_of(solution.labels)) for solution in found], "pool")

    def correct(self) -> None:
        """Corrects the scores of the blocks that candidates hold, so that their sums come nearer to the true KL.

        Factors 1 + d of least sum over candidates of (relative residual)^2 + |d|^2: ridge regression in the dual, one
        unknown a candidate.
        """
        keys = sorted(
            {
                (layer, block)
                for c in self.candidates
                for layer, block in enumerate(c.architecture)
                if block != PARENT_BLOCK
            }
        )
        if not keys:
            return
        base = replace(self.scores, factors={})
        column = {key: index for index, key in enumerate(keys)}
        share_CK = np.zeros((len(self.candidates), len(keys)))
        residual_C = np.zeros(len(self.candidates))
        for row, candidate in enumerate(self.candidates):
            true = max(candidate.true.kl_nats, 1e-9)
            for layer, block in enumerate(candidate.architecture):
                if (layer, block) in column:
                    share_CK[row, column[layer, block]] = base.score(layer, block) / true
            residual_C[row] = 1 - share_CK[row].sum()
        gram_CC = share_CK @ share_CK.T + 1e-2 * np.eye(len(self.candidates))
        change_K = share_CK.T @ np.linalg.solve(gram_CC, residual_C)
        factors = {key: float(max(0.05, 1 + change_K[index])) for key, index in column.items()}
        self.scores = replace(self.scores, factors=factors)

    def swaps(self) -> None:
        """Tries changes of the best candidate within the predicted budget; goes on while they win, within bounds."""
        for _ in range(SWAP_ROUNDS):
            best = self._by_kl()[0]
            problem = self.problem()
            options = _neighbours(best.architecture, self.scores, problem)[:NEIGHBOURS]
            if not self._add(options, "swap") or self._by_kl()[0] is best:
                return

    def baselines(self) -> dict[str, Baseline]:
        """Uniform and depth; both join the candidates when they meet the budget."""

        def excess(architecture: Blocks) -> float:
            return max(e.ratio for e in excess_of(self.search, self.tables.costs, architecture, None))

        found = {
            "uniform": uniform(self.search, self.ids, self.library, self.scores, excess),
            "depth": depth(self.search, self.ids, self.library, excess),
        }
        for name, baseline in found.items():
            if baseline.over_budget is None:
                self._add([baseline.architecture], name)
        return found

    def first_within(self) -> Candidate | None:
        """The best by true KL whose measured times are within the budget; measures few of them.

        Those that the tightened limits rule out are not measured: what was observed of others speaks against them.
        """
        measured = 0
        for candidate in self._by_kl():
            if candidate.measured is None:
                if not self._may_fit(candidate.architecture):
                    continue
                if measured == MEASURED_AT_MOST:
                    return None
                candidate.measured = judged_times(self.search, self.tables.costs, candidate.architecture)
                candidate.excesses = excess_of(
                    self.search, self.tables.costs, candidate.architecture, candidate.measured
                )
                measured += 1
            if within(candidate.excesses):
                return candidate
        return None

    def tighten(self) -> None:
        """Lowers the time limits by the least excess that was measured."""
        judged = [c for c in self.candidates if c.measured is not None]
        for name in self.factor:
            ratios = [
                max((e.ratio for e in c.excesses if e.quantity in (name, _PAIRED.get(name, name))), default=1.0)
                for c in judged
            ]
            if ratios and min(ratios) > 1:
                self.factor[name] /= min(ratios)

    def reached(self) -> str:
        """What the nearest measured candidate reached."""
        nearest = min((c for c in self.candidates if c.measured), key=lambda c: max(e.ratio for e in c.excesses))
        parts = [f"{e.field} is {100 * (e.ratio - 1):.1f} % over its limit" for e in nearest.excesses if e.ratio > 1]
        return (
            f"budget: no candidate met it when measured, after {TIGHTENINGS} tighter solutions; the nearest, "
            f"{nearest.id}: {'; '.join(parts)}; loosen the budget or widen `space`"
        )

    def _add(self, architectures: Sequence[Blocks], origin: str) -> bool:
        held = {candidate.architecture for candidate in self.candidates}
        new = [a for a in dict.fromkeys(architectures) if a not in held]
        if not new:
            return False
        number = len(self.rounds)
        for architecture, true in zip(new, true_scores(self.search, self.ids, self.library, new), strict=True):
            # Dropped layers need not be in the search space, so nothing predicts `depth`: it is what it was seen to be.
            predicted = true.kl_nats if origin == "depth" else self.scores.predict(architecture)
            self.candidates.append(Candidate(architecture, origin, number, predicted, true))
        self.rounds.append(
            {"round": number, "origin": origin, "tried": len(new), "best_kl_nats": self._by_kl()[0].true.kl_nats}
        )
        return True

    def _may_fit(self, architecture: Blocks) -> bool:
        """Whether the predicted costs are within the limits as tightened so far."""
        predicted = excess_of(self.search, self.tables.costs, architecture, None)
        return within(
            [replace(e, ratio=e.ratio / self.factor.get(_TIMED_AS.get(e.quantity, e.quantity), 1.0)) for e in predicted]
        )

    def _by_kl(self) -> list[Candidate]:
        return sorted(self.candidates, key=lambda c: (c.true.kl_nats, c.id))

    def _tight(self, limit: Limit) -> Limit:
        factor = self.factor.get(limit.name.rsplit(".", 1)[-1], 1.0)
        return limit if limit.upper is None else Limit(limit.name, upper=int(limit.upper * factor), lower=limit.lower)


_PAIRED = {"runtime": "throughput"}
_TIMED_AS = {"throughput": "runtime"}


def _neighbours(architecture: Blocks, scores: ScoreTable, problem: Problem) -> list[Blocks]:
    """Single swaps and pairs of swaps (one layer cheaper, one better) within the limits, least predicted KL first."""
    limits = {limit.name: limit.upper for limit in problem.limits if limit.upper is not None}
    columns = [problem.cost_names.index(name) for name in limits]
    room_K = np.array(list(limits.values()), dtype=np.int64) - np.array([problem.base_costs[c] for c in columns])
    moves: list[tuple[int, Block]] = []
    costs, gains = [], []
    for layer, own in enumerate(architecture):
        held = {choice.label: np.array([choice.costs[c] for c in columns]) for choice in problem.layers[layer]}
        own_K = held[" + ".join(own)]
        room_K = room_K - own_K
        for block in scores.blocks(layer):
            if block != own:
                moves.append((layer, block))
                costs.append(held[" + ".join(block)] - own_K)
                gains.append(scores.score(layer, block) - scores.score(layer, own))
    nearest = np.argsort(np.abs(gains), kind="stable")[:SWAPS_PAIRED]
    cost_MK, gain_M = np.array(costs)[nearest], np.array(gains)[nearest]
    kept = [moves[index] for index in nearest]
    layer_M = np.array([layer for layer, _ in kept])
    pair_fits = np.all(cost_MK[:, None] + cost_MK[None] <= room_K, axis=-1) & (layer_M[:, None] < layer_M[None])
    found = [(float(gain_M[m]), ((kept[m]),)) for m in np.flatnonzero(np.all(cost_MK <= room_K, axis=-1))]
    pairs = np.argwhere(pair_fits)
    gain_P = gain_M[pairs[:, 0]] + gain_M[pairs[:, 1]]
    best = [
        (float(gain_P[p]), (kept[pairs[p, 0]], kept[pairs[p, 1]]))
        for p in np.argsort(gain_P, kind="stable")[:NEIGHBOURS]
    ]
    ranked = sorted([*found, *best], key=lambda item: item[0])
    return [_swapped(architecture, dict(changes)) for _, changes in ranked]


def _swapped(architecture: Blocks, changes: dict[int, Any]) -> Blocks:
    return tuple(changes.get(layer, block) for layer, block in enumerate(architecture))
