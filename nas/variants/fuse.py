"""`fuse=n`: the ffns of n neighbouring layers side by side as one wide ffn, behind the first one's attention.

FFN Fusion (arXiv 2503.18908): ffns between which no attention stands depend little on each other, and one wide ffn is
fewer and larger products than several. Here the attentions between them go with the same choice: the columns of the
wide ffn are fitted to all that the layers add behind the first attention, and the layer is trained to answer for all of
them.
"""

from typing import TYPE_CHECKING

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.gated_inlay import GatedFfn
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.run import Run, WideFfn

if TYPE_CHECKING:
    from torch import Tensor


class Fuse(Run):
    """The first layer's attention, and an ffn with the channels of all."""

    name = "fuse"
    example = "fuse: 2"
    forms = "{fuse: N}"

    def problem(self, value: Value, place: Place) -> str | None:
        """A run of layers whose attention has heads of keys and whose ffns have channels."""
        attention, ffn = (place.shape.parent_entry(place.layer, slot) for slot in ("attention", "ffn"))
        if "kv_heads" not in attention or "width" not in ffn:
            return (
                f"{whole(value)} is not possible: the parent has no softmax attention there, or an ffn without "
                "channels; leave it out"
            )
        return super().problem(value, place)

    def entry(self, value: Value, place: Place) -> Entry:
        """The first layer's attention, or a gated ffn of all channels."""
        own = place.own
        return own if place.slot == "attention" else {"kind": GatedFfn.name, "width": own["width"] * whole(value)}

    def channels(self, place: Place, wide: WideFfn) -> "Tensor":
        """All."""
        import torch

        return torch.arange(len(wide.hh_FF), device=wide.hh_FF.device)
