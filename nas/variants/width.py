"""`width=w`: an ffn with fewer channels, those kept that the output misses least without.

Channels go a few at a time, those whose loss the others can best make up for (`least_squares.least_missed`). The
columns of those kept are then fitted by least squares to what all channels gave.
"""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP, GatedFfn
from inlay.nas.quantities import parse_count, parse_number
from inlay.nas.variants.kind import Kind, Place, Value, parse_whole, whole
from inlay.nas.variants.least_squares import least_missed, refitted
from inlay.nas.variants.statistics import ChannelGram, Statistic, Sums

if TYPE_CHECKING:
    from torch import Tensor


class Width(Kind):
    """A narrower gated ffn."""

    name = "width"
    slots = ("ffn",)
    trained = True
    example = "width: 0.5"
    forms = "{width: 0.5}"

    def read(self, value: object) -> int | float:
        """A fraction below 1 as a float, or whole channels."""
        number = parse_number(value) if isinstance(value, float) or "." in str(value) else parse_count(value)
        if number <= 0:
            raise ValueError("is not a width; write a fraction of the parent's such as 0.5, or channels such as 256")
        if number == 1:
            raise ValueError("is the parent's own width or a single channel; write a fraction below 1, or 2 or more")
        if isinstance(number, float) and number > 1:
            if Fraction(number).denominator == 1:
                return int(number)
            raise ValueError("is more than the parent has; write a fraction below 1 such as 0.5, or whole channels")
        return number

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """The channels of the item, a number or a fraction of this layer's own, as the nearest multiple above zero.

        A multiple above the layer's width becomes the largest below it, where there is one. A number that is no width,
        the layer's own, or above it stays as it is; where the parent has no channels, a fraction of one is none.
        """
        own, multiple = int(place.own.get("width", 0)), int(space.multiple)
        wanted = item * own if isinstance(item, float) else item
        if wanted <= 0 or (wanted >= own and not isinstance(item, float)):
            return int(wanted)
        nearest = max(1, round(wanted / multiple)) * multiple
        return own // multiple * multiple if nearest > own >= multiple else nearest

    def rounding(self, item: Any, value: Value, space: Any) -> str:
        """The multiple, where it changed the number."""
        return "" if value == item else f"{item} gives a multiple of {space.multiple}, and "

    def parse(self, text: str) -> Value:
        """256 from `256`."""
        return parse_whole(self.name, text)

    def problem(self, value: Value, place: Place) -> str | None:
        """The width must be above zero and not above the parent's."""
        width, own = whole(value), place.own.get("width")
        if own is None:
            return f"{width} is not possible: the parent's ffn has no channels; leave width out"
        if width < 1:
            return f"{width} is not a width; give at least 1, or no_op for no ffn"
        if width > own:
            return f"{width} is above the parent's width of {own}; give a smaller one, or a fraction such as 0.5"
        return None

    def entry(self, value: Value, place: Place) -> Entry:
        """A gated ffn of `value` channels."""
        return {"kind": GatedFfn.name, "width": whole(value)}

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """How channels go together."""
        return (ChannelGram(),)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The parent's ffn cut to the channels that are missed most, in their old order, which then do more."""
        started, gram_FF = place.tensors(state), sums.of(ChannelGram())["hh"]
        down_DF = started[f"{DOWN}.weight"]
        kept = least_missed(down_DF, gram_FF, whole(value), sums.tokens)
        for name, tensor in started.items():
            if name.startswith((f"{GATE}.", f"{UP}.")):
                started[name] = tensor[kept]
        started[f"{DOWN}.weight"] = refitted(down_DF, gram_FF, kept, sums.tokens).to(down_DF.dtype)
        return started
