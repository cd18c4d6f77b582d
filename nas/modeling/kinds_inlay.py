"""The one list of kinds of subblocks; adding a kind is its file and a line here.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .experts_inlay import Experts
from .full_inlay import FullAttention
from .gated_inlay import GatedFfn
from .gla_inlay import GatedLinearAttention
from .linear_inlay import Linear
from .no_op_inlay import NoOp
from .subblock_inlay import FORMAT, Entry, Slot, SubblockKind, structure
from .window_inlay import WindowAttention


class SubblockKinds:
    """Kinds by their name, in the order messages list them; more can be registered, each once."""

    def __init__(self, kinds: Iterable[SubblockKind]) -> None:
        self._kinds: dict[str, SubblockKind] = {}
        for kind in kinds:
            self.register(kind)

    def register(self, kind: SubblockKind) -> None:
        """Make a kind known in this process; ValueError when its name is taken."""
        if kind.name in self._kinds:
            raise ValueError(f"there is a kind of subblock named {kind.name} already")
        self._kinds[kind.name] = kind

    def forget(self, name: str) -> None:
        """Take a kind out again."""
        del self._kinds[name]

    def of(self, entry: Entry) -> SubblockKind:
        """The kind of an entry that was checked."""
        return self._kinds[entry["kind"]]

    def names(self, slot: str) -> list[str]:
        """Those that can stand in a slot."""
        return [name for name, kind in self._kinds.items() if slot in kind.slots]

    def check(self, slot: Slot, entry: Any, where: str, base: Mapping[str, Any]) -> dict[str, Any]:
        """The entry as a plain dict; ValueError says what is wrong with it and `where`."""
        name = entry.get("kind") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or name not in self.names(slot):
            raise ValueError(f"{where}: {entry!r} has no kind of {slot}; there are {', '.join(self.names(slot))}")
        kind = self._kinds[name]
        if not isinstance(entry.get(FORMAT, ""), str) or (kind.absent and FORMAT in entry):
            raise ValueError(f"{where}: {entry!r} has a format that is no name, or nothing to store")
        bounds = {**kind.fields, **kind.optional}
        if not {"kind", *kind.fields} <= set(structure(entry)) <= {"kind", *bounds}:
            takes = ", ".join(kind.fields) or "nothing else"
            may = f", and may have {', '.join(kind.optional)}" if kind.optional else ""
            raise ValueError(f"{where}: kind {name!r} takes {takes}{may}; given {dict(entry)!r}")
        for field, least in bounds.items():
            value = entry.get(field, least)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{where}: {field} is {value!r}; it must be an integer of at least {least}")
        if (problem := kind.problem(entry, base)) is not None:
            raise ValueError(f"{where}: {problem}")
        return dict(entry)


SUBBLOCKS = SubblockKinds(
    (FullAttention(), WindowAttention(), GatedLinearAttention(), GatedFfn(), Experts(), Linear(), NoOp())
)
