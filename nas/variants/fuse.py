"""`fuse=n`: the ffns of n neighbouring layers side by side as one wide ffn, behind the first one's attention.

FFN Fusion (arXiv 2503.18908): ffns between which no attention stands depend little on each other, and one wide ffn is
fewer and larger products than several. Here the attentions between them go with the same choice, and the layer is
trained to answer for all that they did. It starts as the first attention and the ffns' channels as they are: each reads
its own norm's weight, which is multiplied into its gates, so that the shared norm begins with ones.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP, GatedFfn
from inlay.nas.modeling.subblock_inlay import NORMS
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.run import Run

if TYPE_CHECKING:
    from torch import Tensor

NORM = f"{NORMS['ffn']}.weight"


class Fuse(Run):
    """The first layer's attention, and an ffn with the channels of all."""

    name = "fuse"
    example = "fuse: 2"
    forms = "{fuse: N}"

    def problem(self, value: Value, place: Place) -> str | None:
        """A run of layers whose ffns have channels."""
        if "width" not in place.shape.parent_entry(place.layer, "ffn"):
            return f"{whole(value)} is not possible: the parent's ffn has no channels; leave it out"
        return super().problem(value, place)

    def entry(self, value: Value, place: Place) -> Entry:
        """The first layer's attention, or a gated ffn of all channels."""
        own = place.own
        return own if place.slot == "attention" else {"kind": GatedFfn.name, "width": own["width"] * whole(value)}

    def first(self, place: Place, states: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """The first layer's attention, or the channels of all ffns below each other."""
        import torch

        parts = [place.tensors(state) for state in states]
        if place.slot == "attention":
            return parts[0]
        found = {NORM: torch.ones_like(parts[0][NORM])}
        for name in parts[0]:
            tensors = [part[name] for part in parts]
            if name in (f"{GATE}.weight", f"{UP}.weight"):
                # A product of two numbers of a short type is rounded once, as the norm's own would be.
                found[name] = torch.cat([tensor * part[NORM] for tensor, part in zip(tensors, parts, strict=True)])
            elif name == f"{DOWN}.weight":
                found[name] = torch.cat(tensors, dim=1)
            elif name == f"{DOWN}.bias":
                found[name] = torch.stack(tensors).sum(dim=0)
            elif name != NORM:
                found[name] = torch.cat(tensors)
        return found
