"""`kv_heads=k`: fewer key/value heads, each the mean of a group of the parent's (arXiv 2305.13245, section 2.1)."""

from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import KEY, VALUE, Entry, Shape, Slot
from inlay.nas.variants.kind import Kind, Value, own_tensors, parse_whole, whole

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums


class KvHeads(Kind):
    """Grouped-query attention with fewer groups; queries, output and window stay the parent's."""

    name = "kv_heads"
    slots = ("attention",)
    trained = True

    def parse(self, text: str) -> Value:
        """2 from `2`."""
        return parse_whole(self.name, text)

    def resolve(self, item: Any, space: Any, shape: Shape) -> Value:
        """The number of the item."""
        return int(item)

    def problem(self, value: Value, slot: Slot, shape: Shape, layer: int) -> str | None:
        """The number must divide the parent's and be smaller, so that groups are whole."""
        heads, own = whole(value), shape.kv_heads
        if 0 < heads < own and own % heads == 0:
            return None
        smaller = [str(count) for count in range(1, own) if own % count == 0]
        if not smaller:
            return f"{heads} is not possible: the parent has 1 key/value head; leave kv_heads out"
        return (
            f"{heads} does not divide the parent's {own} key/value heads into fewer; "
            f"give {' or '.join([', '.join(smaller[:-1]), smaller[-1]] if smaller[1:] else smaller)}"
        )

    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """The parent's attention, its window included, with `value` heads."""
        return shape.attention_entry(layer, whole(value))

    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """Keys and values averaged over consecutive heads, weights and biases; norms of heads are shared by all."""
        started = own_tensors(state, slot, shape)
        for name in started:
            if name.startswith((f"{KEY}.", f"{VALUE}.")):
                started[name] = _pool(started[name], whole(value), shape)
        return started


def _pool(tensor: "Tensor", heads: int, shape: Shape) -> "Tensor":
    """Mean over groups of consecutive heads along the first dimension, computed in float32."""
    groups = tensor.float().reshape(heads, shape.kv_heads // heads, shape.head_dim, *tensor.shape[1:])
    return groups.mean(dim=1).flatten(0, 1).to(tensor.dtype)
