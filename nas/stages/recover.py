"""recover: the child and both baselines are trained against the parent, and the best of all that was seen is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from inlay.nas.loop.keeping import keep_best
from inlay.nas.loop.search import Search
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.texts import Texts
from inlay.nas.stages.assemble import Assembled


@dataclass(frozen=True)
class Recovered:
    """What recovery ended with.

    Args:
        assembled: the same as before, with the candidate that is kept now.
        models: `child`, `uniform` and `depth` with their weights.
        curves: their losses, by the same names.
        trained: the ids of the architectures that these are of: a child that is kept as it was before is none of them.
        note: what people are told.
    """

    assembled: Assembled
    models: dict[str, TrainedModel]
    curves: dict[str, list[dict[str, float]]]
    trained: dict[str, str]
    note: str


def recover(search: Search, texts: Texts, assembled: Assembled) -> Recovered:
    """Trains, keeps the best, and warns of trainings that did not help.

    Raises:
        InlayError: a model has no finite KL, neither as it came nor after any training.
    """
    kept = keep_best(assembled.pool, texts, assembled.kept, assembled.baselines, assembled.most_kl)
    for name, record in kept.records.items():
        if sentence := advice(name, record.values, search.job.recover.learning_rate):
            search.reporter.warning(sentence)
    nothing = "" if search.job.recover.tokens else "nothing to train; "
    return Recovered(
        replace(assembled, kept=kept.child.candidate),
        kept.models,
        {name: list(record.values["curve"]) for name, record in kept.records.items()},
        {name: record.label for name, record in kept.records.items()},
        f"{nothing}kept the child as {kept.child.state}, KL {kept.child.kl_nats:.4f} on the score text",
    )


def advice(name: str, values: Mapping[str, Any], upper: float) -> str:
    """What to try where a training never improved its model.

    Empty where it did, where nothing was lost (such weights are the parent's own, stored in other formats), and where
    nothing of it is trained.
    """
    if values["improved"] or values["start_kl_nats"] == 0 or not values["tokens"]:
        return ""
    rate = float(values["learning_rate"])
    lower = "lower recover.learning_rate" if rate == upper else f"lower recover.learning_rate, now {upper:g}"
    return (
        f"recover: no step at a rate of {rate:g} made {name} better than it was assembled (KL "
        f"{values['start_kl_nats']:.4f} on held-out text), so it stays as it was; {lower}, or raise recover.tokens"
    )
