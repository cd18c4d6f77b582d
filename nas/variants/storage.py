"""How what runs a model keeps it: exact bytes from sizes alone, for budgets and reports; no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.nas.families.shape import Entry, Shape
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.variants.sizes import ends_parameters, kv_bytes, weights_bytes

Block = Mapping[Any, Entry]
"""The entries of a layer by slot."""


class Storage(ABC):
    """How a model is kept."""

    @abstractmethod
    def weights(self, entry: Entry, slot: Slot, shape: Shape) -> int:
        """Bytes that one subblock adds to a model."""

    @abstractmethod
    def ends(self, shape: Shape, form: str | None = None) -> int:
        """Bytes of embedding, final norm and head, in another format than the whole file's where one is given."""

    @abstractmethod
    def kv(self, entry: Entry, shape: Shape, batch: int, length: int, form: str | None = None) -> int:
        """Bytes that one subblock's cache takes for `batch` sequences of `length` tokens, in another format than is
        taken unasked where one is given."""

    def model(self, shape: Shape, blocks: Sequence[Block], ends: str | None = None) -> int:
        """Bytes of all weights of a model; `ends` as of `ends`."""
        return self.ends(shape, ends) + sum(
            self.weights(e, slot, shape) for block in blocks for slot, e in block.items()
        )


class AsParent(Storage):
    """Weights and caches in the parent's type."""

    def weights(self, entry: Entry, slot: Slot, shape: Shape) -> int:
        """Its tensors."""
        return weights_bytes(entry, slot, shape)

    def ends(self, shape: Shape, form: str | None = None) -> int:
        """Their tensors; a tied head is not one of its own."""
        return ends_parameters(shape) * shape.dtype_bytes

    def kv(self, entry: Entry, shape: Shape, batch: int, length: int, form: str | None = None) -> int:
        """What its cache layer holds."""
        return kv_bytes(entry, shape, batch, length)
