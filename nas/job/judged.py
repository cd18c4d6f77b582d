"""How long the sequences are that quality is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JUDGED_FIELD = "data.distill.sequence_length"
"""The field that makes these sequences longer."""


def judged_length(sections: Mapping[str, Any]) -> int | None:
    """Tokens of each sequence that scores, ranks and reports; None where the job's section is not there.

    Args:
        sections: those sections of a job that are right on their own, by name.
    """
    return int(sections["data"].distill.sequence_length) if "data" in sections else None
