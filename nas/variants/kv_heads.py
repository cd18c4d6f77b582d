"""`kv_heads=k`: fewer key/value heads, each in place of a group of the parent's.

Grouped-query attention (arXiv 2305.13245) averages the heads of a group. Here a shared head keeps most of what the
group's did on calibration text, and queries and output projection are changed to read it: `merging.py`. Then the output
projection is fitted by least squares to the parent's own updates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.full_inlay import OUTPUT
from inlay.nas.variants.head_count import HeadCount
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.least_squares import fitted
from inlay.nas.variants.statistics import Inputs, Statistic, Sums, output_sums, watch_beside

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.modeling import InlayLayer


class KvHeads(HeadCount):
    """Grouped-query attention with fewer groups; the number of queries and the window stay the parent's."""

    name = "kv_heads"
    example = "kv_heads: 1"
    forms = "{kv_heads: N}"

    def short(self, value: Value) -> str:
        """`kv 2`."""
        return f"kv {value}"

    def problem(self, value: Value, place: Place) -> str | None:
        """The number must divide the parent's and be smaller, so that groups are whole."""
        heads, own = whole(value), place.own.get("kv_heads")
        if own is None:
            return f"{heads} is not possible: the parent's attention has no key/value heads; leave kv_heads out"
        if 0 < heads < own and own % heads == 0:
            return None
        smaller = [str(count) for count in range(1, own) if own % count == 0]
        if not smaller:
            return f"{heads} is not possible: the parent has 1 key/value head; leave kv_heads out"
        return (
            f"{heads} does not divide the parent's {own} key/value heads into fewer; "
            f"give {' or '.join([', '.join(smaller[:-1]), smaller[-1]] if smaller[1:] else smaller)}"
        )

    def entry(self, value: Value, place: Place) -> Entry:
        """The parent's attention, its window included, with `value` heads."""
        return place.own | {"kv_heads": whole(value)}

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """What the projections read, and, behind a second pass, what merged heads give the output projection."""
        heads = whole(value)
        return () if heads == place.own["kv_heads"] else (Inputs(place.slot), MergedHeads(place, heads))

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """Heads merged that lose least by it, the output projection fitted; norms and its bias are the parent's."""
        heads = whole(value)
        if heads == place.own["kv_heads"]:
            return place.tensors(state)
        started, weight = _merged(place, heads, state, sums), f"{OUTPUT}.weight"
        found = sums.of(MergedHeads(place, heads))
        fitted_DO = fitted(started[weight], found["zz"], found["zy"], sums.tokens)
        return started | {weight: fitted_DO.to(started[weight].dtype)}


@dataclass(frozen=True)
class MergedHeads(Statistic):
    """Z'Z and Z'Y of what merged heads give the output projection, Z, and of the parent's update without bias, Y."""

    place: Place
    heads: int
    started: "Mapping[str, Tensor] | None" = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """`attention.kv_heads=1`."""
        return f"{self.place.slot}.{KvHeads.name}={self.heads}"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """What heads are merged by."""
        return (Inputs(self.place.slot),)

    def ready(self, state: "Mapping[str, Tensor]", sums: Sums) -> Statistic:
        """With the heads merged."""
        return replace(self, started=_merged(self.place, self.heads, dict(state), sums))

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """The parent's update, and that of attention with merged heads beside it on the same input."""
        from inlay.nas.modeling import build_layer

        assert self.started is not None
        entry = self.place.own | {"kv_heads": self.heads}
        attention: Any = layer.self_attn  # the family's, which keeps its model's configuration
        dtype = next(layer.get_submodule(OUTPUT).parameters()).dtype
        fewer = build_layer(attention.config, layer.layer_index, entry, None, self.started, dtype)
        return watch_beside(layer, fewer, seen)

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`zz` and `zy`."""
        return output_sums(seen)


def _merged(place: Place, heads: int, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
    """The tensors with heads merged by what the projections read."""
    import torch

    from inlay.nas.variants.merging import merged

    found = sums.of(Inputs(place.slot))
    moments_EE, mean_D = found["xx"].double() / sums.tokens, found["x"].double() / sums.tokens
    if place.shape.qkv_bias:
        ones_1D = torch.cat([mean_D, mean_D.new_ones(1)])[None]
        moments_EE = torch.cat([torch.cat([moments_EE, mean_D[:, None]], dim=1), ones_1D])
    own = place.tensors(state)
    return own | merged(place.shape, own, moments_EE, heads, place.own["kv_heads"])
