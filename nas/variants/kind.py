"""The contract of what a kind of variant does in a search; each kind is one file, and `registry.py` lists them.

A kind is stateless: it works on values (`kv_heads=2` has the value 2) at places of a parent. What stands at a place
once it was chosen is a kind of subblock (nas/modeling); here is how people write it, what it may replace and how it
starts. Nothing of it needs torch but a start, and statistics while they are gathered: whoever needs it imports it.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from inlay.nas.families.shape import Entry, Shape, subblock_tensors
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import SLOTS, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.statistics import Statistic, Sums

Value: TypeAlias = "int | tuple[Value, ...] | None"
"""What a kind takes: a number, several (a window and its sinks), those of two kinds, or nothing."""
LAYERS: Final = "layers"
"""The list of the job's space beside those of the slots: what replaces neighbouring layers together."""
LISTS: Final = (*SLOTS, LAYERS)
JOIN: Final = "+"
"""What stands between two kinds in one slot."""

_WHOLE = re.compile(r"0|[1-9][0-9]*")


@dataclass(frozen=True)
class Place:
    """One subblock of a parent."""

    shape: Shape
    layer: int
    slot: Slot

    @property
    def own(self) -> Entry:
        """The entry of what the parent has here."""
        return self.shape.parent_entry(self.layer, self.slot)

    @property
    def is_empty(self) -> bool:
        """Whether the parent has nothing here: a child of another search may have left it out."""
        return SUBBLOCKS.of(self.own).absent

    def having(self, entry: Entry) -> "Place":
        """The same place of a parent that has `entry` there."""
        blocks = list(self.shape.blocks)
        blocks[self.layer] = {**blocks[self.layer], self.slot: entry}
        return replace(self, shape=replace(self.shape, blocks=tuple(blocks)))

    def tensors(self, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """The parent's own tensors here, of the state of its layer."""
        return {name: state[name] for name in subblock_tensors(self.shape, self.slot, self.own)}


class Kind(ABC):
    """One kind of replacement for a subblock; unless it says otherwise it takes no value."""

    name: str
    """As it stands in labels and in the job file."""
    slots: tuple[Slot, ...]
    """The subblocks that it can replace."""
    lists: ClassVar[tuple[str, ...]] = ()
    """The lists of the job's space that may name it; (): those of its slots."""
    trained: bool
    """Whether it has weights of its own that local distillation trains."""
    is_parent: ClassVar[bool] = False
    """Whether it is the parent's own subblock: always allowed, never written in a job."""
    is_free: ClassVar[bool] = False
    """Whether it costs nothing wherever it stands, so that a cost table has no row for it."""
    beside: ClassVar[str | None] = None
    """The label of the attention that an ffn of this kind stands beside, the two being one choice: it does the work of
    its whole layer. None: it stands beside any, and does what the parent's does there."""
    example: ClassVar[str | None] = None
    """How an item with a value may stand in the job's space: `kv_heads: 1`. None: its name alone is the item."""
    forms: ClassVar[str] = ""
    """All forms of such an item, as the job's reference lists them: `{kv_heads: N}`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """What an item of the job's space names, in the order in which the value has it."""
        return (self.name,)

    def read(self, value: object) -> int | float:
        """The number behind the kind's name in a job. Raises `ValueError`, whose text follows the value given."""
        raise ValueError(f"stands behind {self.name}, which takes no value")

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        """The value that an item of the job's space has at a place; `item` is what `read` gave, None without one."""
        return None

    def run(self, value: Value) -> tuple[Value, ...]:
        """Where it is one choice over several neighbouring layers, with all that stands in them: its value in each of
        them, from the one where it is chosen on, None where nothing is left. (): it replaces one subblock."""
        return ()

    def rounding(self, item: Any, value: Value, space: Any) -> str:
        """Where the value is not what was written: how it came about, to open a sentence on what is wrong with it."""
        return ""

    def format(self, value: Value) -> str:
        """The kind and its value as the label has them after the slot: `kv_heads=2`, `no_op`."""
        return self.name if value is None else f"{self.name}={value}"

    def short(self, value: Value) -> str:
        """The same for a cell of a picture."""
        return self.name if value is None else str(value)

    def parse(self, text: str) -> Value:
        """The value from what stands behind `=` in a label, "" when there is nothing. Raises `ValueError`."""
        if text:
            raise ValueError(f"`{self.name}` takes no value, not `{text}`")
        return None

    def problem(self, value: Value, place: Place) -> str | None:
        """What is wrong with this value at a place that is not empty, with the value and the way out, or `None`."""
        return None

    def too_long(self, value: Value, length: int) -> str | None:
        """What is wrong with this value where quality is judged on sequences of `length` tokens, or `None`."""
        return None

    @abstractmethod
    def entry(self, value: Value, place: Place) -> Entry:
        """How config.json describes the subblock at a place where it can stand."""

    def statistics(self, value: Value, place: Place) -> "tuple[Statistic, ...]":
        """What its start needs of the parent's layer."""
        return ()

    @abstractmethod
    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: "Sums") -> "dict[str, Tensor]":
        """The variant's tensors without any training, its norm included, by layer-local names.

        `state` holds the parent's subblock, of a run of layers all of theirs, as `run_state` gives them; results have
        its dtypes. Tensors that are the parent's own are not copied.
        Raises `ValueError` when `sums` lacks one of its statistics.
        """


def parted(text: str) -> tuple[str, str]:
    """The kind and its value in what a label has after its slot: `kv_heads+window` and `1+256`."""
    parts = [part.partition("=") for part in text.split(JOIN)]
    return JOIN.join(name for name, _, _ in parts), JOIN.join(value for _, _, value in parts)


def parse_whole(name: str, text: str) -> int:
    """The whole number behind `name=` in a label. Raises `ValueError`."""
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"`{name}` takes a whole number, not `{text}`")
    return int(text)


def whole(value: Value) -> int:
    """The value of a kind that takes one number."""
    assert isinstance(value, int)
    return value
