"""`parent`: the parent's own subblock, always a member of the search space."""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import SLOTS, Entry
from inlay.nas.variants.kind import Kind, Place, Value

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.statistics import Sums


class Parent(Kind):
    """Nothing is changed and nothing is trained."""

    name = "parent"
    slots = SLOTS
    trained = False
    is_parent = True

    def short(self, value: Value) -> str:
        """Nothing to tell."""
        return ""

    def entry(self, value: Value, place: Place) -> Entry:
        """The parent's own entry."""
        return place.own

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: "Sums") -> "dict[str, Tensor]":
        """The parent's own tensors."""
        return place.tensors(state)
