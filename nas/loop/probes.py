"""Probes: short recoveries that decide between candidates, because the KL before recovery does not say what comes back.

What global distillation wins back differs by the kind of variant: an ffn that lost channels recovers most of its KL, an
attention that lost its view of the context much less. Some diverse candidates get a short recovery; their KL after it
gives every variant a factor; the program is solved again with these; what it finds, and swaps around the best one, are
probed in turn. A candidate whose KL before recovery is above a baseline's is kept only where no other was probed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from inlay.nas.errors import InfeasibleError
from inlay.nas.job import Job
from inlay.nas.loop.pool import SMALLEST_KL, Candidate, Pool
from inlay.nas.loop.ridge import fit_factors
from inlay.nas.loop.solving import solve_pool
from inlay.nas.loop.spending import spend
from inlay.nas.loop.swaps import neighbours
from inlay.nas.loop.training import train_models
from inlay.nas.loop.true_kl import true_scores_of_models
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.texts import Texts
from inlay.nas.report.sentences import probe_words
from inlay.nas.tables.architecture import PARENT_BLOCK, Block, Blocks, architecture_of, block_of, choices_of, kind_of
from inlay.nas.tables.problem import NANO
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import Choice, Limit, Problem

PROBE_SHARE = 4
"""A probe has one part in so many of recovery's tokens, with a whole schedule of its own."""
PROBE_STEPS = 30
"""It has at least so many steps, though at most half of recovery's tokens: the order of fewer is not settled."""
AT_ONCE = 2
"""Probes between two fits, once the diverse ones are done."""
CENTRES = 2
"""The best ones probed, around which swaps are tried."""
NEAR = 4
"""Swaps around each of them whose true KL is taken before the next probes."""
DOUBT = 4.0
"""How much dearer the variants of one kind are made to find what does without them."""
FIRST_PROBE = 0.4
"""The share of its stage that is done when the first probe begins, as people are told."""
FACTOR_WEIGHT = 0.05
LEAST_FACTOR = 0.05

_BASE = "base"
"""The term of the parent's own KL to its original."""
Labels = Callable[[str], float]


class Probes:
    """The probed candidates, and what they teach.

    Args:
        pool: the candidates; those that the fit suggests are added to it.
        texts: `recover` trains, `score` judges.
        baselines: what is recovered beside the child in any case.
        most_kl: candidates of a larger KL before recovery are not looked for; inf where no baseline meets the budget.
    """

    def __init__(self, pool: Pool, texts: Texts, baselines: Sequence[Blocks], most_kl: float) -> None:
        self.pool, self.texts, self.baselines, self.most_kl = pool, texts, baselines, most_kl
        self.probed: list[Candidate] = []

    @property
    def left(self) -> int:
        """How many probes the job still allows."""
        return self.pool.search.job.recover.probed - len(self.probed)

    @property
    def at_first(self) -> int:
        """How many are probed before anything is learnt: half of them, though as many as are at all events at once."""
        return min(self.left, max(AT_ONCE, -(-self.left // 2)))

    def doubt(self) -> None:
        """Adds, for every kind of variant, the best candidate if that kind were to recover worst."""
        scores = self.pool.scores
        labels = {label for layer in scores.measured for block in scores.blocks(layer) for label in block}
        found: list[Blocks] = []
        for kind in sorted({kind_of(label) for label in labels - set(PARENT_BLOCK)}):
            found += self._solve(weighted(scores, partial(_doubted, kind)), 1)
        self.pool.add(found, "doubt")

    def first(self) -> list[Candidate]:
        """Candidates in the order of their probes: the best, the baselines, then the least like those before.

        Baselines are recovered anyhow: where no fit follows that their probes could teach, they need none.
        """
        fit = [c for c in self.pool.by_kl() if self.pool.may_fit(c)]
        allowed = [c for c in fit if c.true.kl_nats <= self.most_kl]
        teaching = [c for c in fit if c.architecture in self.baselines and c not in allowed[:1]]
        order = [*allowed[:1], *(teaching if self.at_first < self.left else [])]
        rest = [c for c in allowed if c not in order and c not in teaching]
        while rest:
            farthest = max(rest, key=lambda c: (min((_distance(c, o) for o in order), default=0.0), -c.true.kl_nats))
            order.append(farthest)
            rest.remove(farthest)
        return order

    def probe(self, candidates: Sequence[Candidate]) -> None:
        """Trains each for a while and takes its KL; one whose training diverges has none that is finite.

        What a candidate leaves of its budget is spent first; a baseline is probed as it is.
        """
        search, pool = self.pool.search, self.pool
        spent = [c if c.architecture in self.baselines else spend(pool, c) for c in candidates]
        candidates = list({c.id: c for c in spent if c not in self.probed}.values())
        if not candidates:
            return
        wanted = {candidate.id: candidate.architecture for candidate in candidates}
        last = len(self.probed) + len(wanted)
        total = max(last, search.job.recover.probes)
        what = probe_words(len(self.probed) + 1, last, total)
        search.part(FIRST_PROBE + (1 - FIRST_PROBE) * min(1.0, last / total), 1)
        records = train_models(search, self.texts, pool.library, wanted, probe_tokens(search.job), what, self.baselines)
        models = {
            name: TrainedModel.of(wanted[name], record.blobs)
            for name, record in records.items()
            if record.values["status"] == "trained"
        }
        found = true_scores_of_models(search, self.texts.score, models, f"true KL after {what}")
        for candidate in candidates:
            candidate.probe_kl = found[candidate.id].kl_nats if candidate.id in found else math.inf
            candidate.probed = models.get(candidate.id)
            if candidate.probe_kl < math.inf:
                pool.telling.tell("recovered", candidate.probe_kl, candidate.architecture, candidate.measured)
        self.probed += candidates

    def refine(self) -> None:
        """Solves with what the probes taught and probes what that finds, until they are used or nothing is new."""
        for _ in range(2 * self.left):
            if self.left <= 0:
                return
            taught = self.taught()
            # As many more solutions as may be known already: what was probed must not end the search for others.
            best = self._new(self._solve(taught, AT_ONCE + len(self.probed)), AT_ONCE)
            found = self.pool.add([*best, *self._near(taught)], "probe")
            open_ = [
                c
                for c in self.pool.candidates
                if c.probe_kl is None
                and c.true.kl_nats <= self.most_kl
                and self.pool.knows(c.architecture)
                and self.pool.may_fit(c)
            ]
            open_.sort(key=lambda c: (taught.predict(c.architecture), c.id))
            reached = min((c.probe_kl for c in self.probed if c.probe_kl is not None), default=math.inf)
            promising = [c for c in open_ if taught.predict(c.architecture) < reached]
            # What was found without promise still tells where the limits are: first that is learnt.
            affordable, missed = self.pool.judge_some(promising if found else open_, min(AT_ONCE, self.left))
            if affordable:
                self.probe(affordable)
            if missed:
                self.pool.learn_times()
            if found:
                self.pool.correct()
            elif not open_:
                return

    def taught(self) -> ScoreTable:
        """Scores whose sums are the KL after a probe, as far as the probed candidates tell.

        A common shrink, then a factor a variant that is the mean of its own and its kind's.
        """
        scores = self.pool.scores
        seen = [c for c in self.probed if self.pool.knows(c.architecture) and c.probe_kl not in (None, math.inf)]
        after = [max(c.probe_kl or 0.0, SMALLEST_KL) for c in seen]
        shrinks = sorted(
            kl / max(scores.predict(c.architecture), SMALLEST_KL) for c, kl in zip(seen, after, strict=True)
        )
        if not shrinks:
            return scores
        shrink = shrinks[len(shrinks) // 2]
        terms = []
        for candidate in seen:
            held: defaultdict[str, float] = defaultdict(float)
            for layer, block in choices_of(candidate.architecture):
                for label, part in shares(scores, layer, block).items():
                    amount = shrink * part * scores.score(layer, block) / 2
                    held[label] += amount
                    held[kind_of(label) + ":"] += amount
            if scores.base:
                held[_BASE] = shrink * scores.base  # what the parent lacks of its original may come back too
            terms.append(held)
        factors = fit_factors(terms, after, FACTOR_WEIGHT, LEAST_FACTOR)
        found = weighted(
            scores, lambda label: shrink * (factors.get(label, 1.0) + factors.get(kind_of(label) + ":", 1.0)) / 2
        )
        return replace(found, base=shrink * scores.base * factors.get(_BASE, 1.0))

    def _near(self, taught: ScoreTable) -> list[Blocks]:
        """Swaps around the best ones probed, a baseline among them: what its budget has left is spent there."""
        known = [c for c in self.probed if self.pool.knows(c.architecture)]
        known.sort(key=lambda c: (math.inf if c.probe_kl is None else c.probe_kl, c.id))
        problem = self._problem(taught)
        around = [self._new(neighbours(c.architecture, taught, problem), NEAR) for c in known[:CENTRES]]
        return [architecture for found in around for architecture in found]

    def _new(self, found: Iterable[Blocks], number: int) -> list[Blocks]:
        """The first of them that are no candidates yet."""
        held = {candidate.architecture for candidate in self.pool.candidates}
        return [architecture for architecture in found if architecture not in held][:number]

    def _problem(self, scores: ScoreTable) -> Problem:
        return with_most_kl(self.pool.problem(scores), self.pool.scores, self.most_kl)

    def _solve(self, scores: ScoreTable, number: int) -> list[Blocks]:
        chosen = self.pool.search.job.solve
        problem = self._problem(scores)
        with suppress(InfeasibleError):  # such as a KL that no other architecture stays below
            found = solve_pool(problem, number, chosen.min_difference, chosen.time_limit)
            return [tuple(architecture_of(solution.labels)) for solution in found]
        return []


def probe_tokens(job: Job) -> int:
    """What one probe trains on."""
    recover = job.recover
    least = PROBE_STEPS * job.recover_batch * job.data.distill.sequence_length
    return max(1, recover.tokens // PROBE_SHARE, min(recover.tokens // 2, least))


def shares(scores: ScoreTable, layer: int, block: Block) -> dict[str, float]:
    """How a block's score is divided between its two variants: in proportion to what each costs alone.

    All of it is the ffn's that stands beside one attention only.
    """
    held = scores.measured[layer]
    if block[1] != PARENT_BLOCK[1] and (PARENT_BLOCK[0], block[1]) not in held:
        return {block[1]: 1.0}
    alone = {
        label: held[pair]
        for label, pair in zip(block[:2], ((block[0], PARENT_BLOCK[1]), (PARENT_BLOCK[0], block[1])), strict=True)
        if label not in PARENT_BLOCK
    }
    alone |= {label: scores.whole[label] for label in block[2:]}
    total = sum(alone.values())
    return {label: value / total if total > 0 else 1 / len(alone) for label, value in alone.items()}


def _doubted(kind: str, label: str) -> float:
    return DOUBT if kind_of(label) == kind else 1.0


def weighted(scores: ScoreTable, factor: Labels) -> ScoreTable:
    """The scores with every block's multiplied by its variants' factors, each by its share of the block."""
    factors = {
        (layer, block): scores.factors.get((layer, block), 1.0)
        * sum(part * factor(label) for label, part in shares(scores, layer, block).items())
        for layer in scores.measured
        for block in scores.blocks(layer)
        if block != PARENT_BLOCK
    }
    return replace(scores, factors=factors)


def with_most_kl(problem: Problem, scores: ScoreTable, most: float) -> Problem:
    """The problem with the predicted KL before recovery as one more cost, which has a limit."""
    if math.isinf(most):
        return problem

    def priced(layer: int, choice: Choice) -> Choice:
        block = block_of(choice.label)
        return replace(choice, costs=(*choice.costs, max(0, round(scores.score(layer, block) * NANO))))

    def limited(one: Problem) -> Problem:
        return Problem(
            cost_names=(*one.cost_names, "kl"),
            layers=tuple(tuple(priced(layer, choice) for choice in held) for layer, held in enumerate(one.layers)),
            base_costs=(*one.base_costs, round(scores.base * NANO)),
            limits=(*one.limits, Limit("kl", upper=int(most * NANO))),
        )

    return problem.each(limited)


def _distance(one: Candidate, other: Candidate) -> float:
    """How differently two architectures use the variants: the sum over labels of the difference in their numbers."""
    ours, theirs = _usage(one.architecture), _usage(other.architecture)
    return sum(abs(ours[label] - theirs[label]) for label in ours.keys() | theirs.keys())


def _usage(architecture: Iterable[Block]) -> Counter[str]:
    return Counter(label for block in architecture for label in block)
