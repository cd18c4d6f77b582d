"""`alone=w`: a gated ffn that does the work of its whole layer, whose attention is left out.

An ffn that is trained behind the parent's attention cannot make up for one that is not there. This one reads what the
layer reads and answers for both of its updates. It starts from the parent's ffn; the channels that are kept, and their
columns of the down projection, are those of a least-squares fit to the layer's update on calibration text. It can stand
beside no attention alone, so that the two are one choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.quantities import parse_number
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.least_squares import fitted, least_missed
from inlay.nas.variants.no_op import NoOp
from inlay.nas.variants.statistics import Statistic, Sums, keep_input, rows_of
from inlay.nas.variants.width import Width

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.modeling import InlayLayer


class Alone(Width):
    """A gated ffn, up to as wide as the parent's, without attention before it."""

    name = "alone"
    beside = f"attention:{NoOp.name}"
    example = "alone: 0.5"
    forms = "{alone: 0.5}"

    def read(self, value: object) -> int | float:
        """A fraction of at most 1 as a float, or whole channels."""
        if (isinstance(value, float) or "." in str(value)) and parse_number(value) == 1:
            return 1.0
        return super().read(value)

    def problem(self, value: Value, place: Place) -> str | None:
        """A width, at a layer that has an attention to make up for."""
        if Place(place.shape, place.layer, "attention").is_empty:
            return f"{whole(value)} is not possible: the parent has no attention there to make up for; give width"
        return super().problem(value, place)

    def short(self, value: Value) -> str:
        """`a256`."""
        return f"a{whole(value)}"

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """What the channels give without attention, and what the layer gives."""
        return (LayerByChannels(),)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The parent's gates of the channels that the fit misses most, and its columns for these alone."""
        found, weight = sums.of(LayerByChannels()), f"{DOWN}.weight"
        started = place.tensors(state)
        every_DF = fitted(started[weight], found["hh"], found["hy"], sums.tokens)
        kept = least_missed(every_DF, found["hh"], whole(value), sums.tokens)
        for name, tensor in started.items():
            if name.startswith((f"{GATE}.", f"{UP}.")):
                started[name] = tensor[kept]
        down_DK = started[weight][:, kept]
        columns_DK = fitted(down_DK, found["hh"][kept][:, kept], found["hy"][kept], sums.tokens)
        return started | {weight: columns_DK.to(down_DK.dtype)}


@dataclass(frozen=True)
class LayerByChannels(Statistic):
    """H'H, [F, F], of the ffn's channels H on the layer's own input, and H'Y, [F, D], with the layer's update Y."""

    name: str = "layer.channels"

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """The ffn once more, on what the layer reads, and what the layer gives."""
        down = layer.get_submodule(DOWN)

        def beside(module: Any, inputs: Any) -> None:
            watched = down.register_forward_pre_hook(keep_input(seen, "channels"))
            layer.ffn_update(inputs[0])
            watched.remove()

        def update(module: Any, inputs: Any, output: "Tensor") -> None:
            seen["y"] = output - inputs[0] if down.bias is None else output - inputs[0] - down.bias

        return [layer.register_forward_pre_hook(beside), layer.register_forward_hook(update)]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`hh` and `hy`."""
        channels_NF = rows_of(seen["channels"])
        return {"hh": channels_NF.T @ channels_NF, "hy": channels_NF.T @ rows_of(seen["y"])}
