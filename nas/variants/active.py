"""`active=n`: an ffn of experts of which each token takes fewer, those of the largest probability."""

from typing import TYPE_CHECKING

from inlay.nas.modeling.experts_inlay import ACTIVE
from inlay.nas.variants.expert_count import ExpertCount
from inlay.nas.variants.kind import Place, Value

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.statistics import Sums


class Active(ExpertCount):
    """Fewer experts for each token."""

    name = ACTIVE
    example = "active: 1"
    forms = "{active: N}"

    def short(self, value: Value) -> str:
        """`a 1`."""
        return f"a {value}"

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: "Sums") -> "dict[str, Tensor]":
        """The parent's own tensors: a token takes those of the largest probability."""
        return place.tensors(state)
