"""What the cost table promised of a model's times, against what was measured."""

from __future__ import annotations

from inlay.nas.report.records import Evaluation

MOST_OFF = 0.10
"""How far a promised time may be from the measured one before it is told."""


def broken_promises(evaluation: Evaluation) -> list[str]:
    """A sentence for each time that is further off, with the model and the term that it is about."""
    found = []
    for model in evaluation.models:
        for term, (predicted, measured) in model.ratios.items():
            if abs(predicted / measured - 1) > MOST_OFF:
                found.append(
                    f"{model.name}: {term} is {measured:.2f}x of the parent's, and {predicted:.2f}x was predicted "
                    f"({100 * (predicted / measured - 1):+.0f} %); its costs do not add up to it"
                )
    return found
