"""The one list of kinds of variants; adding a kind is its file and a line here."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.variants.active import Active
from inlay.nas.variants.alone import Alone
from inlay.nas.variants.both import Both
from inlay.nas.variants.expert_width import ExpertWidth
from inlay.nas.variants.experts import Experts
from inlay.nas.variants.fuse import Fuse
from inlay.nas.variants.gla import Gla
from inlay.nas.variants.heads import Heads
from inlay.nas.variants.kind import Kind
from inlay.nas.variants.kv_heads import KvHeads
from inlay.nas.variants.linear import Linear
from inlay.nas.variants.merge import Merge
from inlay.nas.variants.no_op import NoOp
from inlay.nas.variants.parent import Parent
from inlay.nas.variants.width import Width
from inlay.nas.variants.window import Window


class Kinds(Mapping[str, Kind]):
    """Kinds by their name, in the order messages list them; more can be registered, each once."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds: dict[str, Kind] = {}
        for kind in kinds:
            self.register(kind)

    def register(self, kind: Kind) -> None:
        """Make a kind known in this process; ValueError when its name is taken."""
        if kind.name in self._kinds:
            raise ValueError(f"there is a kind of variant named {kind.name} already")
        self._kinds[kind.name] = kind

    def forget(self, name: str) -> None:
        """Take a kind out again."""
        del self._kinds[name]

    def __getitem__(self, name: str) -> Kind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


_KV_HEADS, _HEADS, _WINDOW = KvHeads(), Heads(), Window()
_EXPERTS, _ACTIVE, _EXPERT_WIDTH = Experts(), Active(), ExpertWidth()
KINDS: Final = Kinds(
    (
        *(Parent(), _KV_HEADS, _HEADS, _WINDOW, Both(_KV_HEADS, _WINDOW), Both(_HEADS, _WINDOW), Gla()),
        *(Width(), _EXPERTS, _ACTIVE, _EXPERT_WIDTH),
        *(Both(_ACTIVE, _EXPERTS), Both(_ACTIVE, _EXPERT_WIDTH), Both(_EXPERT_WIDTH, _EXPERTS)),
        *(Alone(), Linear(), NoOp()),
        *(Merge(), Fuse()),
    )
)
"""Every kind of variant."""


def kinds_of(slot: Slot) -> list[str]:
    """Names of the kinds that can stand in `slot`."""
    return [name for name, kind in KINDS.items() if slot in kind.slots]


def kinds_in(listed: str) -> list[Kind]:
    """The kinds that may be named in a list of the job's space, the parent's own among them where it has one."""
    return [kind for kind in KINDS.values() if listed in (kind.lists or kind.slots)]


def kind_with(keys: Collection[str], listed: str) -> Kind | None:
    """The kind of what a list of the job's space has as an item with these keys, in any order."""
    return next((kind for kind in kinds_in(listed) if set(kind.keys) == set(keys)), None)
