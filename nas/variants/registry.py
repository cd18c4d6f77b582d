"""The one list of kinds; adding a kind is its file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from inlay.nas.families.shape import Slot
from inlay.nas.variants.kind import Kind
from inlay.nas.variants.kv_heads import KvHeads
from inlay.nas.variants.linear import Linear
from inlay.nas.variants.no_op import NoOp
from inlay.nas.variants.parent import Parent
from inlay.nas.variants.width import Width
from inlay.nas.variants.window import Window

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {kind.name: kind for kind in (Parent(), KvHeads(), Window(), Width(), Linear(), NoOp())}
)
"""Every kind by its name, in the order messages list them."""


def kinds_of(slot: Slot) -> list[str]:
    """Names of the kinds that can stand in `slot`."""
    return [name for name, kind in KINDS.items() if slot in kind.slots]
