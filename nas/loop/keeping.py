"""Who is kept: the best on the score text of all that was seen, as assembled, after a probe or recovered.

What comes out best is recovered if it was not, and what it leaves of its budget is spent, until the best has had both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from inlay.cluster.pieces import Record
from inlay.nas.loop.baselines import Baseline
from inlay.nas.loop.pool import Candidate, Pool
from inlay.nas.loop.spending import spend
from inlay.nas.loop.training import assembled_models, recover_models
from inlay.nas.loop.true_kl import true_scores_of_models
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.texts import Texts
from inlay.nas.tables.architecture import Blocks

MORE_AT_MOST = 2
"""Models that are recovered beside the child and the baselines, because something else was seen to be better."""


@dataclass(frozen=True)
class Seen:
    """A candidate in one of its states, with its KL on the score text.

    Args:
        model: its weights; None as assembled.
    """

    candidate: Candidate
    state: Literal["assembled", "probed", "recovered"]
    kl_nats: float
    model: TrainedModel | None


@dataclass(frozen=True)
class Kept:
    """The child that is kept, and the models that are reported.

    Args:
        child: the best that was seen, trained baselines excepted unless the child is one.
        models: `child` and both baselines with their weights.
        records: of the recoveries of the models, by their names; none where nothing is trained.
    """

    child: Seen
    models: dict[str, TrainedModel]
    records: dict[str, Record]


def keep_best(pool: Pool, texts: Texts, child: Candidate, baselines: Mapping[str, Baseline], most_kl: float) -> Kept:
    """Recovers the child and the baselines, and whatever else turns out to be the best of all that was seen.

    Args:
        pool: the candidates; swaps that spend the budget are added to it.
        texts: `recover` trains, `held_out` stops, `score` ranks.
        child: who is thought to be the best.
        baselines: recovered whether they meet the budget or not, since they are reported.
        most_kl: candidates above it before recovery are not kept in the child's place.

    Raises:
        InlayError: a training diverged.
    """
    named = {"child": child.architecture} | {name: found.architecture for name, found in baselines.items()}
    if not pool.search.job.recover.tokens:
        return _as_assembled(pool, child, named, most_kl)
    records, models = _recover(pool, texts, named)
    ranked = _rank(pool, texts, models)
    for _ in range(MORE_AT_MOST):
        best = _best(pool, ranked, child, most_kl)
        new = next((c for c in (spend(pool, best.candidate), best.candidate) if c.architecture not in ranked), None)
        if new is None:
            break
        more, trained = _recover(pool, texts, {new.id: new.architecture})
        records |= more
        ranked |= _rank(pool, texts, trained)
    others = {b.architecture for b in baselines.values()} - {child.architecture}
    own = {architecture: seen for architecture, seen in ranked.items() if architecture not in others}
    best = _best(pool, own, child, most_kl, without=others)
    kept = best if best.model else _with_weights(pool, best)
    assert kept.model is not None
    records["child"] = records.get(kept.candidate.id, records["child"])
    return Kept(kept, models | {"child": kept.model}, {name: records[name] for name in named})


def _as_assembled(pool: Pool, child: Candidate, named: Mapping[str, Blocks], most_kl: float) -> Kept:
    """The best of all that was seen, where nothing is trained."""
    others = set(named.values()) - {child.architecture}
    best = _best(pool, {}, child, most_kl, without=others)
    models = assembled_models(pool.search, pool.library, {**named, "child": best.candidate.architecture})
    return Kept(replace(best, model=models["child"]), models, {})


def _with_weights(pool: Pool, seen: Seen) -> Seen:
    found = assembled_models(pool.search, pool.library, {"child": seen.candidate.architecture})
    return replace(seen, model=found["child"])


_Ranked = dict[Blocks, tuple[float, TrainedModel]]
"""KL on the score text and weights of what was recovered."""


def _recover(
    pool: Pool, texts: Texts, architectures: Mapping[str, Blocks]
) -> tuple[dict[str, Record], dict[str, TrainedModel]]:
    records = recover_models(pool.search, texts, pool.library, architectures)
    return records, {name: TrainedModel.of(architectures[name], r.blobs) for name, r in records.items()}


def _rank(pool: Pool, texts: Texts, models: Mapping[str, TrainedModel]) -> _Ranked:
    found = true_scores_of_models(pool.search, texts.score, models, "true KL on the score text")
    return {model.architecture: (found[name].kl_nats, model) for name, model in models.items()}


def _best(pool: Pool, ranked: _Ranked, child: Candidate, most_kl: float, without: Collection[Blocks] = ()) -> Seen:
    """The best of the candidates that meet the budget when measured, in any state."""
    allowed = [
        c
        for c in pool.candidates
        if c is child or (c.true.kl_nats <= most_kl and c.architecture not in without and pool.may_fit(c))
    ]
    seen = [state for c in allowed if c.excesses is not None for state in _states(c, ranked)]
    best = min(seen, key=lambda each: (each.kl_nats, each.state != "recovered", each.candidate.id))
    lower = sorted((c for c in allowed if c.true.kl_nats < best.kl_nats), key=lambda c: (c.true.kl_nats, c.id))
    met, _ = pool.judge_some(lower, 1)
    return Seen(met[0], "assembled", met[0].true.kl_nats, None) if met else best


def _states(candidate: Candidate, ranked: _Ranked) -> Iterator[Seen]:
    yield Seen(candidate, "assembled", candidate.true.kl_nats, None)
    if candidate.probed is not None and candidate.probe_kl is not None:
        yield Seen(candidate, "probed", candidate.probe_kl, candidate.probed)
    if candidate.architecture in ranked:
        yield Seen(candidate, "recovered", *ranked[candidate.architecture])
