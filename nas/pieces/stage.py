"""A stage's identity: its records are found again by it."""

from __future__ import annotations

from dataclasses import dataclass

from inlay.cluster.pieces import PieceFunction


@dataclass(frozen=True)
class Stage:
    """A stage's identity: its records are found again by it.

    Args:
        name: the stage's name, also in the records' folder.
        version: raised when the same settings would give other results.
        function: the module-level function that a worker calls for each piece.
    """

    name: str
    version: int
    function: PieceFunction
