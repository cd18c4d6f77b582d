"""`merge=n`: n neighbouring layers become one, trained to do what all of them did.

The layer reads what the first of them reads and answers for the updates of all; it starts as the first. What is left
has the times, the bytes and the cache of one layer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.nas.families.shape import Entry
from inlay.nas.variants.kind import Place, Value
from inlay.nas.variants.run import Run

if TYPE_CHECKING:
    from torch import Tensor


class Merge(Run):
    """One layer like those that it stands for."""

    name = "merge"
    example = "merge: 2"
    forms = "{merge: N}"

    def entry(self, value: Value, place: Place) -> Entry:
        """That of the first layer."""
        return place.own

    def first(self, place: Place, states: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """The first layer's own."""
        return place.tensors(states[0])
