"""`merge=n`: n neighbouring layers become one, trained to do what all of them did.

The layer reads what the first of them reads and answers for the updates of all. It starts as the first one's attention,
and of the channels of all their ffns as many as one has, those that what the layers add misses most; the columns of
these are fitted to it by least squares. What is left has the times, the bytes and the cache of one layer.
"""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import Entry
from inlay.nas.variants.kind import Place, Value
from inlay.nas.variants.least_squares import least_missed
from inlay.nas.variants.run import Run, WideFfn

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

    def channels(self, place: Place, wide: WideFfn) -> "Tensor":
        """As many as one layer has, those that are missed most."""
        import torch

        every_F = torch.arange(len(wide.hh_FF), device=wide.hh_FF.device)
        return least_missed(wide.columns(every_F), wide.hh_FF, place.own["width"], wide.tokens)
