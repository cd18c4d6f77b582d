"""`merge=n`: n neighbouring layers become one, trained to do what all of them did.

The layer reads what the first of them reads and answers for the updates of all. It starts as the first one's attention,
and of the channels of all their ffns as many as one has, those that what the layers add misses most; the columns of
these are fitted to it by least squares. What is left has the times, the bytes and the cache of one layer.
"""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.variants.kind import Place, Value
from inlay.nas.variants.least_squares import fitted, least_missed
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

    def ffn(
        self,
        value: Value,
        place: Place,
        together: "dict[str, Tensor]",
        hh_FF: "Tensor",
        hy_FD: "Tensor",
        tokens: int,
    ) -> "dict[str, Tensor]":
        """As many channels as one layer has."""
        down_DF = together[f"{DOWN}.weight"]
        kept = least_missed(fitted(down_DF, hh_FF, hy_FD, tokens), hh_FF, place.own["width"], tokens)
        columns_DK = fitted(down_DF[:, kept], hh_FF[kept][:, kept], hy_FD[kept], tokens)
        rows = {name: each[kept] for name, each in together.items() if name.startswith((f"{GATE}.", f"{UP}."))}
        return together | rows | {f"{DOWN}.weight": columns_DK.to(down_DF.dtype)}
