"""The contract of a kind of variant; each kind is one file, and `registry.py` lists them.

A kind is stateless: it works on values (`kv_heads=2` has the value 2) and knows nothing of modules.
"""

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from inlay.nas.families.shape import Entry, Shape, Slot, subblock_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums

Value: TypeAlias = int | tuple[int, int] | None
"""What a kind takes: a number, a window and its sinks, or nothing."""

_WHOLE = re.compile(r"0|[1-9][0-9]*")


class Kind(ABC):
    """One kind of replacement for a subblock."""

    name: ClassVar[str]
    """As it stands in labels and in the job file."""
    slots: ClassVar[tuple[Slot, ...]]
    """The subblocks that it can replace."""
    trained: ClassVar[bool]
    """Whether it has weights of its own that local distillation trains."""

    def format(self, value: Value) -> str:
        """The kind and its value as the label has them after the slot: `kv_heads=2`, `no_op`."""
        return self.name if value is None else f"{self.name}={value}"

    def parse(self, text: str) -> Value:
        """The value from what stands behind `=` in a label, "" when there is nothing. Raises `ValueError`."""
        if text:
            raise ValueError(f"`{self.name}` takes no value, not `{text}`")
        return None

    def resolve(self, item: Any, space: Any, shape: Shape) -> Value:
        """The value of an item of the job's search space: `item` is what stands behind the kind's name there."""
        return None

    def problem(self, value: Value, slot: Slot, shape: Shape, layer: int) -> str | None:
        """What is wrong with this value at this layer of the parent, with the value and the way out, or `None`."""
        return None

    @abstractmethod
    def entry(self, value: Value, slot: Slot, shape: Shape, layer: int) -> Entry:
        """How config.json describes the subblock."""

    @abstractmethod
    def start(
        self, value: Value, slot: Slot, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None"
    ) -> "dict[str, Tensor]":
        """The variant's tensors without any training, its norm included, by layer-local names.

        `state` holds the parent's layer; results have its dtypes. Tensors that are the parent's own are not copied.
        Raises `ValueError` when `sums` lacks what the kind needs.
        """


def parse_whole(name: str, text: str) -> int:
    """The whole number behind `name=` in a label. Raises `ValueError`."""
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"`{name}` takes a whole number, not `{text}`")
    return int(text)


def whole(value: Value) -> int:
    """The value of a kind that takes one number."""
    assert isinstance(value, int)
    return value


def own_tensors(state: "dict[str, Tensor]", slot: Slot, shape: Shape) -> "dict[str, Tensor]":
    """The parent's own tensors of one subblock; which layer does not matter, since names are the same in all."""
    return {name: state[name] for name in subblock_tensors(shape, slot, shape.parent_entry(0, slot))}
