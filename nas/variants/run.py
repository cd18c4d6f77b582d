"""Neighbouring layers that are one choice: what kinds of them have in common.

A run is chosen with its first layer, whose two subblocks stand beside each other alone; what stands in the layers
behind it follows. The program knows how many layers a choice fills, so that no two runs overlap, and an architecture
stays one block a layer.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inlay.nas.families.shape import SLOTS
from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import LAYERS, Kind, Place, Value, parse_whole, whole
from inlay.nas.variants.statistics import Sums

if TYPE_CHECKING:
    from torch import Tensor

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

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """From the layers of the run, as `run_state` gives them."""
        states = [layer_of(state, number) for number in range(whole(value))]
        return self.first(place, states)

    @abstractmethod
    def first(self, place: Place, states: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """The tensors of the subblock that stands for those of all layers of the run, whose states are given."""


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
