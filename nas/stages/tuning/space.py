"""What is searched: the settings of a job's local and global distillation, each in a range around the job's own value.

So the job's own settings are a point of the space, and the first that is tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from inlay.distill.settings import LocalSettings
from inlay.nas.job import Job

DECADE = 10.0
"""Rates are searched from a tenth of the job's own to ten times as much, evenly in their logarithm."""
BATCHES = (0.25, 0.5, 1.0, 2.0)
"""Batches, of the job's own: for the same tokens more and smaller steps mostly win."""
FEWEST_STEPS = 8
"""A larger batch than the job's own must leave so many."""
WARMUP = 0.3
"""The largest share of the steps in which a rate climbs, unless the job's own is larger."""
RATES = ("found", "pinned")

Space = dict[str, BaseDistribution]
"""Distributions by the field of the job that they are drawn for."""


def search_space(job: Job, num_sequences: int, *, local: bool, whole: bool) -> Space:
    """The space around a job.

    Args:
        job: whose settings are searched.
        num_sequences: of the text that variants are trained on, those held out among them.
        local: whether local distillation trains anything of the child.
        whole: whether the child is trained as a whole.
    """
    length = job.data.distill.sequence_length
    space: Space = {}
    if local:
        batch = job.distill.batch_size
        most = min(job.distill.tokens // (FEWEST_STEPS * length), (num_sequences - 1) // LocalSettings.held_out)
        space["distill.rate"] = CategoricalDistribution(RATES)
        space["distill.learning_rate"] = _rate(job.distill.learning_rate)
        space["distill.batch_size"] = _batch(batch, most)
        space["distill.warmup"] = _warmup(job.distill.warmup)
    if whole:
        space["recover.rate"] = CategoricalDistribution(RATES)
        space["recover.learning_rate"] = _rate(job.recover.learning_rate)
        most = job.recover.tokens // (FEWEST_STEPS * length)
        space["recover.batch_size"] = _batch(job.recover_batch, most)
        space["recover.warmup"] = _warmup(job.recover.warmup)
    return space


def own_settings(job: Job, space: Space) -> dict[str, Any]:
    """The job's own point of the space."""
    values = _values(job)
    return {name: _field(values, name) for name in space}


def settings_of(job: Job, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a point of the space says, with numbers as short as a person would write them."""
    own = _values(job)

    def written(name: str, value: Any) -> Any:
        return value if value == _field(own, name) or not isinstance(value, float) else float(f"{value:.3g}")

    return {name: written(name, value) for name, value in params.items()}


def job_with(job: Job, settings: Mapping[str, Any]) -> Job:
    """The job with other settings, by dotted fields.

    Raises:
        UserError: a value is none that a job may have.
    """
    values = job.to_dict()
    for name, value in settings.items():
        section, field = name.split(".")
        values[section][field] = value
    return Job.from_dict(values, job.folder)


def _values(job: Job) -> dict[str, Any]:
    """The job's fields, the batch that it leaves open as it is chosen."""
    values = job.to_dict()
    values["recover"]["batch_size"] = job.recover_batch
    return values


def _field(values: Mapping[str, Any], name: str) -> Any:
    section, field = name.split(".")
    return values[section][field]


def _rate(own: float) -> FloatDistribution:
    return FloatDistribution(own / DECADE, min(1.0, own * DECADE), log=True)


def _batch(own: int, most: int) -> CategoricalDistribution:
    sizes = {max(1, int(own * factor)) for factor in BATCHES}
    return CategoricalDistribution(sorted(size for size in sizes if size <= max(own, most)))


def _warmup(own: float) -> FloatDistribution:
    return FloatDistribution(0.0, max(WARMUP, own))
