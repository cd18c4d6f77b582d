"""`kv_heads=k`: fewer key/value heads, each the mean of a group of the parent's (arXiv 2305.13245, section 2.1)."""

from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.full_inlay import KEY, VALUE
from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import Kind, Place, Value, parse_whole, whole

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.statistics import Sums


class KvHeads(Kind):
    """Grouped-query attention with fewer groups; queries, output and window stay the parent's."""

    name = "kv_heads"
    slots = ("attention",)
    trained = True
    example = "kv_heads: 1"
    forms = "{kv_heads: N}"

    def read(self, value: object) -> int:
        """A whole number of at least 1."""
        heads = parse_count(value)
        if heads < 1:
            raise ValueError("is out of range; it must be at least 1 (no attention at all is no_op)")
        return heads

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """The number of the item."""
        return int(item)

    def parse(self, text: str) -> Value:
        """2 from `2`."""
        return parse_whole(self.name, text)

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

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: "Sums") -> "dict[str, Tensor]":
        """Keys and values averaged over consecutive heads, weights and biases; norms of heads are shared by all."""
        started = place.tensors(state)
        for name in started:
            if name.startswith((f"{KEY}.", f"{VALUE}.")):
                started[name] = _pool(started[name], whole(value), place.own["kv_heads"])
        return started


def _pool(tensor: "Tensor", heads: int, own: int) -> "Tensor":
    """Mean over groups of consecutive heads along the first dimension, computed in float32."""
    groups = tensor.float().reshape(heads, own // heads, -1, *tensor.shape[1:])
    return groups.mean(dim=1).flatten(0, 1).to(tensor.dtype)
