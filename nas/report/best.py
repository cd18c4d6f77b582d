"""The best architecture so far, in a sentence for people and in numbers for the tracker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KIND = {
    "predicted": "first architecture: predicted KL",
    "true": "best so far: true KL",
    "recovered": "best after a short recovery: KL",
}


@dataclass(frozen=True)
class Best:
    """An architecture that is better than all that were known.

    Args:
        by: the KL that says so: `predicted` by the scores, `true` as assembled, `recovered` after a probe.
        kl_nats: that KL.
        runtime_ratio: of the parent's, in the first scenario: measured where it was, else predicted.
        memory_ratio: of the parent's weights and cache, exact.
    """

    by: Literal["predicted", "true", "recovered"]
    kl_nats: float
    runtime_ratio: float
    memory_ratio: float

    def sentence(self) -> str:
        """`best so far: true KL 0.36, runtime 0.58x, memory 0.77x`."""
        return f"{KIND[self.by]} {self.kl_nats:.3g}, runtime {self.runtime_ratio:.2f}x, memory {self.memory_ratio:.2f}x"

    def metrics(self) -> dict[str, float]:
        """By the names that the tracker has them under."""
        return {
            f"best/{self.by}_kl_nats": self.kl_nats,
            "best/runtime_ratio": self.runtime_ratio,
            "best/memory_ratio": self.memory_ratio,
        }
