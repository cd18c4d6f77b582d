"""`no_op`: the subblock is left out; the residual passes it by (Puzzle, arXiv 2411.19146, section 2)."""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import SLOTS, Entry
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.variants.kind import Kind, Place, Value

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.statistics import Sums


class NoOp(Kind):
    """No norm, no weights, no cache, no time."""

    name = "no_op"
    slots = SLOTS
    trained = False
    is_free = True

    def short(self, value: Value) -> str:
        """A dash."""
        return "–"

    def entry(self, value: Value, place: Place) -> Entry:
        """An entry without sizes."""
        return dict(ABSENT)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: "Sums") -> "dict[str, Tensor]":
        """Nothing: a no-op has no tensors."""
        return {}
