"""Neighbouring layers that are one choice: what kinds of them have in common.

A run is chosen with its first layer, whose two subblocks stand beside each other alone; what stands in the layers
behind it follows. The program knows how many layers a choice fills, so that no two runs overlap, and an architecture
stays one block a layer.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import SLOTS
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.modeling.subblock_inlay import MIXERS, NORMS
from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import LAYERS, Kind, Place, Value, parse_whole, whole
from inlay.nas.variants.least_squares import fitted
from inlay.nas.variants.statistics import Statistic, Sums, keep_input, rows_of

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.modeling import InlayLayer

NORM = f"{NORMS['ffn']}.weight"
FEWEST = 2
"""Layers of a run."""
State = Mapping[str, "Tensor"]
"""The tensors of one layer, both subblocks', by layer-local names."""


class Run(Kind):
    """One trained layer in place of so many neighbours; nothing stands in the layers behind the first."""

    slots = SLOTS
    lists = (LAYERS,)
    trained = True

    def read(self, value: object) -> int | float:
        """Layers, two or more."""
        number = parse_count(value)
        if number < FEWEST:
            raise ValueError(f"is no run of layers; write {FEWEST} or more")
        return number

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """The number of layers."""
        return int(item)

    def parse(self, text: str) -> Value:
        """2 from `2`."""
        return parse_whole(self.name, text)

    def short(self, value: Value) -> str:
        """`merge 2`."""
        return f"{self.name} {whole(value)}"

    def run(self, value: Value) -> tuple[Value, ...]:
        """The value at the first layer, and nothing behind it."""
        return (value, *(None for _ in range(whole(value) - 1)))

    def problem(self, value: Value, place: Place) -> str | None:
        """A run ends with the parent's last layer at the latest, and is of layers that are alike."""
        layers, shape = whole(value), place.shape
        if layers < FEWEST:
            return f"{layers} is no run of layers; give {FEWEST} or more"
        if place.layer + layers > shape.num_layers:
            return (
                f"{layers} is not possible at layer {place.layer}: the parent has {shape.num_layers} layers; give fewer"
            )
        for behind in range(place.layer + 1, place.layer + layers):
            if shape.blocks[behind] != shape.blocks[place.layer]:
                return (
                    f"{layers} is not possible: layers {place.layer} and {behind} of the parent are unlike, and a run "
                    "is of layers of one shape; give fewer, or leave it out"
                )
        return None

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """What the channels of all ffns can give of what the layers add."""
        is_fitted = place.slot == "ffn" and _have_channels(place)
        return (RunChannels(Place(place.shape, place.layer, "attention"), whole(value)),) if is_fitted else ()

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """From the layers of the run, as `run_state` gives them: the first one's attention, and an ffn that is fitted
        to all that they add behind it."""
        states = [layer_of(state, number) for number in range(whole(value))]
        if place.slot == "attention" or not _have_channels(place):
            return place.tensors(states[0])
        found = sums.of(RunChannels(place, whole(value)))
        wide = WideFfn(side_by_side([place.tensors(each) for each in states]), found["hh"], found["hy"], sums.tokens)
        return wide.with_channels(self.channels(place, wide))

    @abstractmethod
    def channels(self, place: Place, wide: "WideFfn") -> "Tensor":
        """Which channels of the wide ffn stay, ascending indices."""


@dataclass(frozen=True)
class WideFfn:
    """The ffns of a run of layers as one, F channels of all of them, and what they are fitted to.

    Args:
        tensors: of `side_by_side`.
        hh_FF: H'H of the channels H, over the tokens.
        hy_FD: H'Y with what is to be added, Y.
        tokens: how many.
    """

    tensors: "dict[str, Tensor]"
    hh_FF: "Tensor"
    hy_FD: "Tensor"
    tokens: int

    def columns(self, kept_K: "Tensor") -> "Tensor":
        """The last matrix of channels alone, fitted by least squares, [D, K], float64."""
        down_DK = self.tensors[f"{DOWN}.weight"][:, kept_K]
        return fitted(down_DK, self.hh_FF[kept_K][:, kept_K], self.hy_FD[kept_K], self.tokens)

    def with_channels(self, kept_K: "Tensor") -> "dict[str, Tensor]":
        """The tensors of the ffn with these channels alone, their columns fitted."""
        down = f"{DOWN}.weight"
        rows = {name: each[kept_K] for name, each in self.tensors.items() if name.startswith((f"{GATE}.", f"{UP}."))}
        return self.tensors | rows | {down: self.columns(kept_K).to(self.tensors[down].dtype)}


def _have_channels(place: Place) -> bool:
    """Whether the layers are softmax attention and gated ffns, whose channels can be put side by side."""
    attention, ffn = (place.shape.parent_entry(place.layer, slot) for slot in SLOTS)
    return "kv_heads" in attention and "width" in ffn


def side_by_side(parts: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
    """Gated ffns as one with the channels of all: it gives the sum of what they give of the same state.

    Each one's norm weight is multiplied into its gates, so that the norm that they share has ones.
    """
    import torch

    found = {NORM: torch.ones_like(parts[0][NORM])}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if name in (f"{GATE}.weight", f"{UP}.weight"):
            found[name] = torch.cat([tensor * part[NORM] for tensor, part in zip(tensors, parts, strict=True)])
        elif name == f"{DOWN}.weight":
            found[name] = torch.cat(tensors, dim=1)
        elif name == f"{DOWN}.bias":
            found[name] = torch.stack(tensors).sum(dim=0)
        elif name != NORM:
            found[name] = torch.cat(tensors)
    return found


def _bias(layer: "InlayLayer") -> "list[Tensor]":
    """The bias of an ffn's last matrix, where it has one."""
    return [tensor.detach() for name, tensor in layer.get_submodule(DOWN).named_parameters() if name == "bias"]


@dataclass(frozen=True)
class RunChannels(Statistic):
    """H'H, [F, F], of the channels H of the ffns of several layers, all on the state behind the first one's attention,
    and H'Y, [F, D], with all that the layers add behind that, Y; F channels of all of them."""

    place: Place = field(compare=False)
    layers: int
    behind: "tuple[State, ...]" = field(default=(), compare=False, repr=False)
    """The states of the layers behind the first, once they are known."""

    @property
    def name(self) -> str:
        """`run.channels=2`."""
        return f"run.channels={self.layers}"

    def ready(self, state: "State", sums: Sums) -> Statistic:
        """With the layers behind, of what `run_state` gave."""
        return replace(self, behind=tuple(layer_of(state, number) for number in range(1, self.layers)))

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """The ffns behind once more, on the state that the first one reads, and the layers behind on what they read."""
        from inlay.nas.modeling import build_layer

        down, attention = layer.get_submodule(DOWN), layer.get_submodule(MIXERS["attention"])
        config: Any = attention.config  # the family's, which keeps its model's configuration
        dtype = next(attention.parameters()).dtype
        attention_entry, ffn_entry = (self.place.shape.parent_entry(self.place.layer, slot) for slot in SLOTS)
        behind = [
            build_layer(config, layer.layer_index + number, attention_entry, ffn_entry, state, dtype)
            for number, state in enumerate(self.behind, start=1)
        ]

        def run(module: Any, inputs: Any, output: "Tensor") -> None:
            middle_BSD, context = seen["middle"], inputs[1]
            for number, each in enumerate(behind, start=1):
                watched = each.get_submodule(DOWN).register_forward_pre_hook(keep_input(seen, f"channels{number}"))
                each.ffn_update(middle_BSD)
                watched.remove()
                output = each(output, context)
            # What is fitted is the matrix: its bias will be the sum of theirs.
            biases = [tensor for each in (layer, *behind) for tensor in _bias(each)]
            seen["y"] = output - middle_BSD - sum(biases)

        norm = layer.get_submodule(NORMS["ffn"])
        return [
            norm.register_forward_pre_hook(keep_input(seen, "middle")),
            down.register_forward_pre_hook(keep_input(seen, "channels0")),
            layer.register_forward_hook(run),
        ]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`hh` and `hy`."""
        import torch

        channels_NF = torch.cat([rows_of(seen[f"channels{number}"]) for number in range(self.layers)], dim=1)
        return {"hh": channels_NF.T @ channels_NF, "hy": channels_NF.T @ rows_of(seen["y"])}


def run_state(states: "Sequence[State]") -> "dict[str, Tensor]":
    """What starts read of a run of layers: the first one's tensors by their names, others' behind `+1.`, `+2.`, …"""
    return {
        (f"+{number}.{name}" if number else name): tensor
        for number, own in enumerate(states)
        for name, tensor in own.items()
    }


def layer_of(state: "State", number: int) -> "dict[str, Tensor]":
    """The tensors of one layer of a run, of what `run_state` gave. Raises `ValueError` where it is not there."""
    if not number:
        return {name: tensor for name, tensor in state.items() if not name.startswith("+")}
    opening = f"+{number}."
    found = {name.removeprefix(opening): tensor for name, tensor in state.items() if name.startswith(opening)}
    if not found:
        raise ValueError(f"a run of layers starts from all of them; the parent's layer {number} behind is not given.")
    return found
