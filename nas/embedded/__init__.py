"""Models that ship with inlay, so that a first search needs no download."""

from pathlib import Path
from typing import Final

from inlay.nas.errors import UserError

PARENTS: Final = ("pystdlib",)


def embedded_parent(name: str) -> Path:
    """The folder of a shipped model, in Transformers' format. Raises `UserError` for a name not in `PARENTS`."""
    if name not in PARENTS:
        known = ", ".join(f"`{parent}`" for parent in PARENTS)
        raise UserError(f"There is no embedded parent `{name}`: the embedded parents are {known}.")
    return Path(__file__).parent / name
