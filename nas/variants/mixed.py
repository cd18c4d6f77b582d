"""A search's space once it is known in which mixes of formats its subblocks are offered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.variants.space import SearchSpace


@dataclass(frozen=True)
class MixedSpace:
    """A space, and what its subblocks may be stored in beside that: `q4_K,down=q6_K`, by layer and slot."""

    space: SearchSpace
    mixes: Mapping[tuple[int, Slot], Sequence[str]]

    @property
    def attention(self) -> Sequence[Any]:
        """Alternatives to attention."""
        return self.space.attention

    @property
    def ffn(self) -> Sequence[Any]:
        """Alternatives to the ffn."""
        return self.space.ffn

    @property
    def layers(self) -> Sequence[Any]:
        """Alternatives to neighbouring layers together."""
        return self.space.layers

    @property
    def forms(self) -> Sequence[str]:
        """The formats."""
        return self.space.forms

    @property
    def mixes_forms(self) -> bool:
        """Whether the matrices of one subblock may be in different ones."""
        return self.space.mixes_forms

    @property
    def multiple(self) -> int:
        """Widths are rounded to it."""
        return self.space.multiple

    @property
    def sinks(self) -> int:
        """First tokens that every window sees."""
        return self.space.sinks

    def stored_as(self, layer: int, slot: Slot) -> Sequence[str]:
        """What a subblock may be stored in."""
        return (*self.space.stored_as(layer, slot), *self.mixes.get((layer, slot), ()))
