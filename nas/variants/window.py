"""`window=w`: a query sees the last `w` tokens, itself included, and the first `sinks` (arXiv 2309.17453).

The cache holds at most w + sinks tokens. Weights are the parent's own, and are trained to live with less.
"""

from typing import TYPE_CHECKING, Any, Final

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.window_inlay import WindowAttention
from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import Kind, Place, Value, parse_whole, whole

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.statistics import Sums

DEFAULT_SINKS: Final = 4
"""What a label leaves out."""


class Window(Kind):
    """Sliding attention with sinks; the value is (window, sinks)."""

    name = "window"
    slots = ("attention",)
    trained = True
    example = "window: 128"
    forms = "{window: N}"

    def read(self, value: object) -> int:
        """A whole number of at least 1."""
        window = parse_count(value)
        if window < 1:
            raise ValueError("is out of range; it must be at least 1")
        return window

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """The window of the item with the sinks of the space."""
        return int(item), int(space.sinks)

    def format(self, value: Value) -> str:
        """`window=128`, and `window=128,sinks=0` where sinks are not the default."""
        window, sinks = _pair(value)
        return f"window={window}" if sinks == DEFAULT_SINKS else f"window={window},sinks={sinks}"

    def short(self, value: Value) -> str:
        """`w128`."""
        return f"w{_pair(value)[0]}"

    def parse(self, text: str) -> Value:
        """(128, 4) from `128`, (128, 0) from `128,sinks=0`."""
        window, comma, rest = text.partition(",")
        name, equals, sinks = rest.partition("=")
        if comma and (name != "sinks" or not equals):
            raise ValueError(f"`window` takes `W` or `W,sinks=S`, not `{text}`")
        return parse_whole("window", window), parse_whole("sinks", sinks) if comma else DEFAULT_SINKS

    def problem(self, value: Value, place: Place) -> str | None:
        """A window must have a token, fit the context, and be smaller than the parent's own at this layer."""
        window, _ = _pair(value)
        own, context = place.own.get("window"), place.shape.max_positions
        if "kv_heads" not in place.own:
            return f"{window} is not possible: the parent's attention has no keys to choose from; leave window out"
        if window < 1:
            return f"{window} is not a window; give at least 1 token, or no_op for no attention"
        if window > context:
            return f"{window} is longer than the parent's context of {context} tokens; give at most {context}"
        if own is not None and window >= own:
            return f"{window} is not smaller than the parent's own window of {own} tokens; give less than {own}"
        return None

    def too_long(self, value: Value, length: int) -> str | None:
        """A window and its sinks must hide something of the sequences that scores are taken on."""
        window, sinks = _pair(value)
        if window + sinks < length:
            return None
        return (
            f"{window} and {sinks} sinks hide nothing of the sequences of {length} tokens that quality is judged on, "
            f"so that what it loses would not be seen; give less than {max(1, length - sinks)}"
        )

    def entry(self, value: Value, place: Place) -> Entry:
        """The parent's heads with a window."""
        window, sinks = _pair(value)
        return place.own | {"kind": WindowAttention.name, "window": window, "sinks": sinks}

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: "Sums") -> "dict[str, Tensor]":
        """The parent's own tensors."""
        return place.tensors(state)


def _pair(value: Value) -> tuple[int, int]:
    assert isinstance(value, tuple)
    window, sinks = value
    return whole(window), whole(sinks)
