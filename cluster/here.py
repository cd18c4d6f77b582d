"""Pieces in this process, one after the other: for a few that take less time than workers need to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from inlay.cluster.errors import PieceError
from inlay.cluster.pieces import Piece, Record
from inlay.cluster.records import kept_records
from inlay.cluster.store import Store
from inlay.cluster.worker import Order, perform


def run_pieces_here(store: Store, pieces: Sequence[Piece], scratch: Path) -> list[Record]:
    """Return the record of every piece, in the order given; committed ones are only read, no Ray is started.

    The records are those that workers would commit, since a piece's threads are set here too; they stay set.
    Raises PieceError when a function raises; what was committed before stays.
    """
    kept = kept_records(store, pieces)
    records: list[Record] = []
    for piece in pieces:
        if piece.key in kept:
            records.append(kept[piece.key])
            continue
        if store.exists(piece.record_key):
            store.delete(piece.record_key)  # its blobs are gone
        order = Order(piece, store, scratch, progress_key="", attempt=1, memory_retries=0, memory_limit_bytes=None)
        outcome = perform(order, _Silent())
        if outcome.record is None:
            text = f"{piece.stage}, {piece.label}: {outcome.kind}: {outcome.message}"
            raise PieceError(text, piece.label, len(records), outcome.kind, outcome.details)
        records.append(outcome.record)
    return records


class _Silent:
    """Nobody waits for what is done in a few seconds."""

    def __call__(self, fraction: float, numbers: Mapping[str, float] | None = None, /) -> None:
        """Says nothing."""

    def waits(self, what: str, /) -> None:
        """Says nothing."""

    def called_off(self) -> bool:
        """Nobody calls anything off."""
        return False
