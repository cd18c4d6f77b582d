"""`window=w`: a query sees the last `w` tokens, itself included, and the first `sinks` (arXiv 2309.17453).

The cache holds at most w + sinks tokens. Weights are the parent's own, and are trained to live with less.
"""

from typing import TYPE_CHECKING, Any, Final

from inlay.nas.families.shape import Entry, Shape, Slot
from inlay.nas.variants.kind import Kind, Value, own_tensors, parse_whole

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums

DEFAULT_SINKS: Final = 4
"""What a label leaves out."""


class Window(Kind):
    """Sliding attention with sinks; the value is (window, sinks)."""

    name = "window"
    slots = ("attention",)
    trained = True

    def format(self, value: Value) -> str:
        """`window=128`, and `window=128,sinks=0` where sinks are not the default."""
        window, sinks = _pair(value)
        return f"window={window}" if sinks == DEFAULT_SINKS else f"window={window},sinks={sinks}"

    def parse(self, text: str) -> Value:
        """(128, 4) from `128`, (128, 0) from `128,sinks=0`."""
        window, comma, rest = text.partition(",")
        name, equals, sinks = rest.partition("=")
        if comma and (name != "sinks" or not equals):
            raise ValueError(f"`window` takes `W` or `W,sinks=S`, not `{text}`")
        return parse_whole("window", window), parse_whole("sinks", sinks) if comma else DEFAULT_SINKS

    def resolve(self, item: Any, space: Any, shape: Shape) -> Value:
        """The window of the item with the sinks of the space."""
        return int(item), int(space.sinks)

    def problem(self, value: Value, slot: Slot, shape: Shape, layer: int) -> str | None:
        """A window must have a token, fit the context, and be smaller than the parent's own at this layer."""
        window, _ = _pair(value)
        own = shape.windows[layer]
        if window < 1:
            return f"{window} is not a window; give at least 1 token, or no_op for no attention"
        if window > shape.max_positions:
            return (
                f"{window} is longer than the parent's context of {shape.max_positions} tokens; "
                f"give at most {shape.max_positions}"
            )
        if own is not None and window >= own:
            return f"{window} is not smaller than the parent's own window of {own} tokens; give less than {own}"
        return None

    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """The parent's heads with a window."""
        window, sinks = _pair(value)
        return {"kind": "window", "kv_heads": shape.kv_heads, "window": window, "sinks": sinks}

    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """The parent's own tensors."""
        return own_tensors(state, slot, shape)


def _pair(value: Value) -> tuple[int, int]:
    assert isinstance(value, tuple)
    return value
