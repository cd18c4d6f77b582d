"""What kinds share whose value is how many heads attention has: how it is written and read."""

from typing import Any

from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import Kind, Place, Value, parse_whole


class HeadCount(Kind):
    """Attention with fewer heads of some sort."""

    slots = ("attention",)
    trained = True

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
