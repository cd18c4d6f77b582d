"""What kinds share whose value is a number of experts: how it is written and read, and what it may be."""

from typing import Any

from inlay.nas.families.shape import Entry
from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import Kind, Place, Value, parse_whole, whole


class ExpertCount(Kind):
    """An ffn of experts with another number of something."""

    slots = ("ffn",)
    trained = True

    def read(self, value: object) -> int:
        """A whole number of at least 1."""
        count = parse_count(value)
        if count < 1:
            raise ValueError("is out of range; it must be at least 1 (no ffn at all is no_op)")
        return count

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """The number of the item."""
        return int(item)

    def parse(self, text: str) -> Value:
        """4 from `4`."""
        return parse_whole(self.name, text)

    def problem(self, value: Value, place: Place) -> str | None:
        """There must be experts, and at least so many."""
        count, own = whole(value), place.own.get(self.name)
        if own is None:
            return f"{count} is not possible: the parent's ffn has no experts; leave {self.name} out"
        if count > own:
            return f"{count} is above the parent's {own}; give a smaller number"
        return None if count else f"{count} is not possible; give at least 1"

    def entry(self, value: Value, place: Place) -> Entry:
        """The parent's ffn with another number."""
        return place.own | {self.name: whole(value)}
