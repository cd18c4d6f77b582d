"""`no_op`: the subblock is left out; the residual passes it by (Puzzle, arXiv 2411.19146, section 2)."""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import SLOTS, Entry, Shape, Slot
from inlay.nas.variants.kind import Kind, Value

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums


class NoOp(Kind):
    """No norm, no weights, no cache, no time."""

    name = "no_op"
    slots = SLOTS
    trained = False

    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """An entry without sizes."""
        return {"kind": "no_op"}

    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """Nothing: a no-op has no tensors."""
        return {}
