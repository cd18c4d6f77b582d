"""What tuning is worth: the job's settings against the best ones, by other seeds, on text that judged no trial."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from inlay.nas.errors import InlayError
from inlay.nas.loop.true_kl import true_scores_of_models
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.stages.tuning.pieces import Trainer

SEEDS = 3
SURE = 2.92
"""Standard errors of the mean difference of so many pairs above which it counts: Student's t, one side, 95 %."""


@dataclass(frozen=True)
class Compared:
    """KL on the score text after both settings, seed by seed; nats per token."""

    seeds: tuple[int, ...]
    job: tuple[float, ...]
    tuned: tuple[float, ...]

    @property
    def gain_nats(self) -> float:
        """How much less the tuned settings leave, in the mean."""
        return mean(self.job) - mean(self.tuned)

    @property
    def gain_ratio(self) -> float:
        """The same as a share of what the job's leave."""
        return self.gain_nats / mean(self.job)

    @property
    def standard_error(self) -> float:
        """Of the gain, from the differences seed by seed."""
        gains = [own - tuned for own, tuned in zip(self.job, self.tuned, strict=True)]
        return stdev(gains) / math.sqrt(len(gains))

    @property
    def is_better(self) -> bool:
        """Whether the gain is more than noise."""
        return self.gain_nats > SURE * self.standard_error

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Compared:
        """From what `to_dict` gave."""
        return cls(*(tuple(values[name]) for name in ("seeds", "job_kl_nats", "tuned_kl_nats")))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "seeds": list(self.seeds),
            "job_kl_nats": list(self.job),
            "tuned_kl_nats": list(self.tuned),
            "gain_nats": self.gain_nats,
            "gain_ratio": self.gain_ratio,
            "standard_error": self.standard_error,
            "is_better": self.is_better,
        }


def compare(trainer: Trainer, own: Mapping[str, Any], tuned: Mapping[str, Any]) -> Compared:
    """Trains the child with both settings by `SEEDS` seeds that no trial had, and judges all on the score text.

    Of the children themselves nothing is kept: their records go, and `inlay clean` drops their weights.

    Raises:
        InlayError: one of the trainings diverged.
    """
    search = trainer.search
    seeds = tuple(search.job.seed + number for number in range(1, SEEDS + 1))
    both = {"the job's": own, "the best": tuned}
    pieces = {
        (name, seed): trainer.piece(f"{name} settings, seed {seed}", settings, seed, keep=True)
        for seed in seeds
        for name, settings in both.items()
    }
    records = search.run(list(pieces.values()), "the job's settings and the best", "trainings")
    for piece in pieces.values():
        shutil.rmtree(piece.arguments["checkpoint"], ignore_errors=True)
    models = {}
    for (name, seed), record in zip(pieces, records, strict=True):
        if record.values["status"] != "done":
            raise InlayError(
                f"tune: {name} settings diverged with seed {seed} ({record.values['reason']}): they hold by luck; give "
                "more --trials, or lower the rates of the job"
            )
        models[f"{name} {seed}"] = TrainedModel.of(trainer.child.architecture, record.blobs)
    found = true_scores_of_models(search, trainer.texts.score, models, "true KL on the score text")
    kl = {name: tuple(found[f"{name} {seed}"].kl_nats for seed in seeds) for name in both}
    for piece in pieces.values():
        search.workspace.store.delete(piece.record_key)
    search.forget_rounded()
    return Compared(seeds, kl["the job's"], kl["the best"])
