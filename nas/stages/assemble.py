"""assemble: the closed loop from predictions to one kept child.

The pool's true KL corrects the scores and the solver runs again until the prediction holds; the swaps around the best
are tried with true KL; short recoveries tell which of the candidates whose measured times meet the budget comes back
best, and that one is kept. Measured times that differ from the predicted ones correct the costs, and the solver runs
again: what is left of the budget is spent; where too few candidates meet it, others are sought, at most three times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from inlay.nas.errors import InfeasibleError
from inlay.nas.loop.baselines import Baseline, depth, uniform
from inlay.nas.loop.excess import excess_of
from inlay.nas.loop.pool import SMALLEST_KL, Candidate, Pool
from inlay.nas.loop.probes import FIRST_PROBE, Probes
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables
from inlay.nas.loop.spending import spend
from inlay.nas.loop.swaps import neighbours
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.standard_error import Values
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import Block, Blocks, identify

TIME_CORRECTIONS = 3
SWAP_ROUNDS = 4
HOLDS = 0.05
"""A prediction holds when it is so near to the true KL, relatively, or when the difference is within its own error."""


@dataclass(frozen=True)
class Assembled:
    """The best candidate so far, the baselines, and the pool with its candidates, corrected scores and rounds.

    `most_kl` is the least KL, as assembled, of a baseline that meets the budget; inf where none does.
    """

    kept: Candidate
    baselines: dict[str, Baseline]
    pool: Pool
    most_kl: float

    def seen(self, architectures: Mapping[str, Blocks]) -> dict[str, Comparison]:
        """What candidates and baselines were seen as on the score text, as assembled."""
        known = {baseline.architecture: baseline.comparison for baseline in self.baselines.values()}
        known |= {candidate.architecture: candidate.true for candidate in self.pool.candidates}
        return {name: known[architecture] for name, architecture in architectures.items()}


def assemble(
    search: Search, texts: Texts, library: Library, tables: Tables, scored: Mapping[tuple[int, Block], Values]
) -> Assembled:
    """Runs the loop.

    Raises:
        InfeasibleError: nothing meets the budget, predicted or measured; the text says what was reached.
    """
    pool = Pool(search, texts.score, library, tables, scored)
    before_probes = FIRST_PROBE if search.job.recover.probed else 1.0
    search.part(0.4 * before_probes, search.job.solve.corrections + 1)
    correct(pool)
    search.part(0.6 * before_probes, SWAP_ROUNDS)
    swap(pool)
    search.part(0.8 * before_probes, SWAP_ROUNDS)
    learn_times(pool)
    search.part(before_probes)
    baselines = join_baselines(pool)
    search.on_names({name: identify(baseline.architecture) for name, baseline in baselines.items()})
    most_kl = min((b.comparison.kl_nats for b in baselines.values() if b.over_budget is None), default=math.inf)
    probes = Probes(pool, texts, [baseline.architecture for baseline in baselines.values()], most_kl)
    if probes.left:
        probes.doubt()
        probes.probe(affordable(pool, probes.first, probes.at_first, probes.doubt))
        probes.refine()

    def order(candidate: Candidate) -> tuple[bool, float, float, str]:
        return candidate.true.kl_nats > most_kl, candidate.probe_kl or 0.0, candidate.true.kl_nats, candidate.id

    kept = min(probes.probed or affordable(pool, pool.by_kl, 1, pool.solve), key=order)
    if (spent := spend(pool, kept)) is not kept:
        if probes.probed:
            probes.probe([spent])
        kept = min(kept, spent, key=order)
    return Assembled(kept, baselines, pool, most_kl)


def correct(pool: Pool) -> None:
    """Solves, takes the true KL, corrects the scores, and again until the best new candidate was rightly predicted."""
    for _ in range(pool.search.job.solve.corrections + 1):
        new = pool.solve()
        if not new:
            return
        pool.correct()
        best = min(new, key=lambda c: (c.true.kl_nats, c.id))
        near = abs(best.miss.nats) <= HOLDS * max(best.true.kl_nats, SMALLEST_KL)
        if near or best.miss.within_noise:
            return


def swap(pool: Pool) -> None:
    """Tries changes of the best candidate within the predicted budget; goes on while they win beyond the noise."""
    for _ in range(SWAP_ROUNDS):
        best = pool.by_kl()[0]
        if not pool.add(neighbours(best.architecture, pool.scores, pool.problem()), "swap"):
            return
        if pool.by_kl()[0].true.above(best.true).within_noise:
            return


def learn_times(pool: Pool) -> None:
    """Measures the best candidate: where it takes another time than predicted, all are sought again, baselines too.

    Raises:
        InfeasibleError: none that was found meets the budget when measured.
    """
    affordable(pool, pool.by_kl, 1, pool.solve)
    if pool.learn_times():
        with suppress(InfeasibleError):  # the budget now seems out of reach
            pool.solve()
        swap(pool)


def join_baselines(pool: Pool) -> dict[str, Baseline]:
    """Uniform, and depth where structure is searched; they join the candidates when they meet the budget.

    A search for formats alone is no matter of layers, and to drop them one by one takes longer than all the rest of it.
    """
    search, library = pool.search, pool.library

    def excess(architecture: Blocks) -> float:
        return max(e.ratio for e in excess_of(search, pool.costs, architecture, None))

    found = {"uniform": uniform(search, pool.ids, library, pool.scores, excess)}
    if not search.job.space.formats_alone:
        found["depth"] = depth(search, pool.ids, library, excess)
    for name, baseline in found.items():
        if baseline.over_budget is None:
            pool.add([baseline.architecture], name)
    return found


def affordable(
    pool: Pool, order: Callable[[], list[Candidate]], wanted: int, search_again: Callable[[], object]
) -> list[Candidate]:
    """The first candidates, in some order, that meet the budget when measured: at least one, `wanted` at most.

    Fewer than wanted are enough once a correction of the costs says no more than the times' noise.

    Args:
        search_again: adds candidates under the corrected costs.

    Raises:
        InfeasibleError: none does, with the costs corrected as often as they may be.
    """
    for attempt in range(TIME_CORRECTIONS + 1):
        found, missed = pool.judge_some(order(), wanted)
        if len(found) == wanted or (found and not missed):
            return found
        if attempt < TIME_CORRECTIONS:
            if not pool.learn_times() and found:
                return found  # those that missed did so by no more than the times' noise: it is not chased
            with suppress(InfeasibleError):  # the budget now seems out of reach
                search_again()
    if found:
        return found
    raise InfeasibleError(
        f"budget: no candidate met it when measured, after {TIME_CORRECTIONS} corrections of the predicted times; "
        f"{pool.reached()}; loosen the budget or widen `space`"
    )
