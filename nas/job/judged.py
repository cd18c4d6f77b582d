"""How long the sequences are that score, rank and report."""

from __future__ import annotations

from inlay.nas.job.model import Job

JUDGED_FIELD = "data.validate.sequence_length"
"""The field that makes these sequences longer."""


def judged_length(job: Job) -> int:
    """Tokens in a sequence of the validation text.

    `data.validate.sequence_length`, else the longest scenario's prefill + generate, at least
    `data.distill.sequence_length`: what a window or a cache leaves out shows only in a context that exceeds it. At most
    the parent's context, since neither a scenario nor a sequence may be longer than that.
    """
    return job.data.judged_length(job.hardware.scenarios)
