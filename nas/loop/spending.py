"""What a child leaves of its budget is spent: swaps that take more of it are tried until all were seen to be worse."""

from __future__ import annotations

from collections.abc import Sequence

from inlay.nas.loop.pool import Candidate, Pool
from inlay.nas.loop.swaps import spending
from inlay.nas.loop.true_kl import GROUP
from inlay.nas.tables.architecture import Blocks


def spend(pool: Pool, start: Candidate) -> Candidate:
    """Climbs from a candidate by single swaps that take more of the budget and have a lower true KL.

    Returns:
        The candidate around which every such swap that the tables offer was seen to have a higher true KL, or to miss
        the budget when measured; `start` itself where its blocks are not all in the tables.
    """
    best = start
    while pool.knows(best.architecture):
        swaps = spending(best.architecture, pool.scores, pool.problem())
        groups = [swaps[first : first + GROUP] for first in range(0, len(swaps), GROUP)]
        better = next((found for found in (_better(pool, group, best) for group in groups) if found), None)
        if better is None:
            break
        best = better
    return best


def _better(pool: Pool, swaps: Sequence[Blocks], than: Candidate) -> Candidate | None:
    """The one of the lowest true KL among swaps that meet the measured budget and are better; None without one."""
    pool.add(swaps, "spend")
    seen = [candidate for candidate in pool.by_kl() if candidate.architecture in swaps]
    lower = [candidate for candidate in seen if candidate.true.kl_nats < than.true.kl_nats]
    met, _ = pool.judge_some(lower, 1)
    return met[0] if met else None
