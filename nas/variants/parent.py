"""`parent`: the parent's own subblock, always a member of the search space."""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import SLOTS, Entry, Shape, Slot
from inlay.nas.variants.kind import Kind, Value, own_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums


class Parent(Kind):
    """Nothing is changed and nothing is trained."""

    name = "parent"
    slots = SLOTS
    trained = False

    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """The parent's own entry."""
        return shape.parent_entry(layer, slot)

    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """The parent's own tensors."""
        return own_tensors(state, slot, shape)
