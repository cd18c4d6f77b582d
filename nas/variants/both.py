"""Two kinds in one slot, the second on what the first made: `kv_heads=1+window=256` has a smaller cache both ways.

Nothing but the pair itself is told here and in the registry: how it is written, what it may replace and how it starts
follow from the two.
"""

from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import Entry
from inlay.nas.variants.kind import JOIN, Kind, Place, Value
from inlay.nas.variants.statistics import Statistic, Sums

if TYPE_CHECKING:
    from torch import Tensor


class Both(Kind):
    """What `then` makes of what `first` makes of the parent's subblock; the value is that of both.

    `then` must take the weights as it finds them: statistics are gathered of the parent.
    """

    def __init__(self, first: Kind, then: Kind) -> None:
        self.first, self.then = first, then
        self.name = f"{first.name}{JOIN}{then.name}"
        self.slots = tuple(slot for slot in first.slots if slot in then.slots)
        self.trained = first.trained or then.trained

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of both."""
        return (*self.first.keys, *self.then.keys)

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """That of each; `item` has one number for each."""
        first, then = item
        return self.first.resolve(first, space, place), self.then.resolve(then, space, place)

    def format(self, value: Value) -> str:
        """`kv_heads=1+window=256`."""
        first, then = _pair(value)
        return f"{self.first.format(first)}{JOIN}{self.then.format(then)}"

    def short(self, value: Value) -> str:
        """`kv 1 w256`."""
        first, then = _pair(value)
        return f"{self.first.short(first)} {self.then.short(then)}"

    def parse(self, text: str) -> Value:
        """From `1+256`."""
        first, _, then = text.partition(JOIN)
        return self.first.parse(first), self.then.parse(then)

    def problem(self, value: Value, place: Place) -> str | None:
        """That of the first, or of the second behind it, opened by its name."""
        first, then = _pair(value)
        if (problem := self.first.problem(first, place)) is not None:
            return f"{self.first.name} {problem}"
        problem = self.then.problem(then, self._behind(first, place))
        return None if problem is None else f"{self.then.name} {problem}"

    def too_long(self, value: Value, length: int) -> str | None:
        """That of either."""
        for kind, own in zip((self.first, self.then), _pair(value), strict=True):
            if (problem := kind.too_long(own, length)) is not None:
                return f"{kind.name} {problem}"
        return None

    def entry(self, value: Value, place: Place) -> Entry:
        """The second's, of a place that has the first."""
        first, then = _pair(value)
        return self.then.entry(then, self._behind(first, place))

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """What either needs."""
        first, then = _pair(value)
        return (
            *self.first.statistics(first, place),
            *self.then.statistics(then, self._behind(first, place)),
        )

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The second's, of what the first starts with."""
        first, then = _pair(value)
        started = self.first.start(first, place, state, sums)
        return self.then.start(then, self._behind(first, place), started, sums)

    def _behind(self, value: Value, place: Place) -> Place:
        return place.having(self.first.entry(value, place))


def _pair(value: Value) -> tuple[Value, Value]:
    assert isinstance(value, tuple)
    first, then = value
    return first, then
