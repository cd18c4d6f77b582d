"""What was promised of a model's times and sizes, against what was found."""

from __future__ import annotations

from inlay.nas.quantities import show_bytes
from inlay.nas.report.records import Evaluation

MOST_OFF = 0.10
"""How far what was promised may be from what was found before it is told."""


def broken_promises(evaluation: Evaluation) -> list[str]:
    """A sentence for each time and each size that is further off, with the model and the term that it is about."""
    found = []
    for model in evaluation.models:
        for term, (predicted, measured) in model.ratios.items():
            if abs(predicted / measured - 1) > MOST_OFF:
                found.append(
                    f"{model.name}: {term} is {measured:.2f}x of the parent's, and {predicted:.2f}x was predicted "
                    f"({100 * (predicted / measured - 1):+.0f} %); its costs do not add up to it"
                )
        for term, (own, held) in model.sizes.items():
            if own is not None and held and abs(own / held - 1) > MOST_OFF:
                found.append(
                    f"{model.name}: {term} takes {show_bytes(held)}, and {show_bytes(own)} were predicted "
                    f"({100 * (own / held - 1):+.0f} %)"
                )
    return found
