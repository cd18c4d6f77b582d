"""`width=w`: an ffn with fewer channels, those kept that contribute most to its output.

Channel Contribution (Puzzle, arXiv 2411.19146, appendix on FFN pruning): the mean over tokens of |activation of the
channel| times the norm of its column in the down projection.
"""

from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import DOWN, GATE, UP, Entry, Shape, Slot
from inlay.nas.variants.kind import Kind, Value, own_tensors, parse_whole, whole

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums


class Width(Kind):
    """A narrower gated ffn."""

    name = "width"
    slots = ("ffn",)
    trained = True

    def parse(self, text: str) -> Value:
        """256 from `256`."""
        return parse_whole(self.name, text)

    def resolve(self, item: Any, space: Any, shape: Shape) -> Value:
        """The channels of the item, a number or a fraction of the parent's, as the nearest multiple above zero.

        A multiple above the parent's width becomes the largest below it, where there is one. A number that is no width,
        the parent's own, or above it stays as it is.
        """
        own, multiple = shape.ffn_width, int(space.multiple)
        wanted = item * own if isinstance(item, float) else item
        if wanted <= 0 or (wanted >= own and not isinstance(item, float)):
            return int(wanted)
        nearest = max(1, round(wanted / multiple)) * multiple
        return own // multiple * multiple if nearest > own >= multiple else nearest

    def problem(self, value: Value, slot: Slot, shape: Shape, layer: int) -> str | None:
        """The width must be above zero and not above the parent's."""
        width, own = whole(value), shape.ffn_width
        if width < 1:
            return f"{width} is not a width; give at least 1, or no_op for no ffn"
        if width > own:
            return f"{width} is above the parent's width of {own}; give a smaller one, or a fraction such as 0.5"
        return None

    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """A gated ffn of `value` channels."""
        return {"kind": "gated", "width": whole(value)}

    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """The parent's ffn cut to the channels that contribute most, in their old order. Needs `sums`."""
        if sums is None:
            raise ValueError("`width` starts from calibration sums; run calibrate first.")
        kept = most_contributing(channel_contribution(sums, state), whole(value))
        started = own_tensors(state, slot, shape)
        for name, tensor in started.items():
            if name.startswith((f"{GATE}.", f"{UP}.")):
                started[name] = tensor[kept]
        started[f"{DOWN}.weight"] = started[f"{DOWN}.weight"][:, kept]
        return started


def channel_contribution(sums: "CalibrationSums", state: "dict[str, Tensor]") -> "Tensor":
    """How much each channel of the parent's ffn gives its output, in float64, [F]."""
    mean_F = sums.channel_abs.double() / sums.tokens
    norm_F: Tensor = state[f"{DOWN}.weight"].double().norm(dim=0)
    return mean_F * norm_F


def most_contributing(contribution_F: "Tensor", width: int) -> "Tensor":
    """Indices of the `width` largest, ascending; of equal ones the first, so that the choice is the same everywhere."""
    order_F: Tensor = contribution_F.argsort(descending=True, stable=True)
    return order_F[:width].msort()
