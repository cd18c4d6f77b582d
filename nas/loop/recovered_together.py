"""Which models one worker trains beside each other, so that their parent runs once for all of them.

Where there are, or may come, workers for several, each model is trained by its own, which takes less time by the clock.
A model's record is the same either way, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inlay.cluster.pieces import Piece
from inlay.cluster.records import kept_records
from inlay.cluster.store import digest_of
from inlay.nas.loop.recovery_memory import fit_together
from inlay.nas.loop.search import Search
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.training import recover_together, take_recovered
from inlay.nas.tables.architecture import blocks_of
from inlay.nas.variants.entries import entries_of

TOGETHER = Stage("recover_together", 1, recover_together)
SAME = ("ids", "held_out", "tail", "settings", "batch_size", "train")
"""What models that are trained together must agree on, of what their pieces are told."""


def trained_together(search: Search, pieces: Sequence[Piece], what: str) -> list[Piece]:
    """The pieces, with those in place of which several were trained together: these only take what came of that.

    Args:
        search: whose pieces they are.
        pieces: each trains one model in one process.
        what: people are told.
    """
    kept = kept_records(search.workspace.store, pieces)
    missing = [piece for piece in pieces if piece.key not in kept]
    if len(missing) < 2 or search.may_grow or search.places > 1:
        return list(pieces)
    groups = [group for alike in _alike(missing) for group in _that_fit(search, alike) if len(group) > 1]
    if not groups:
        return list(pieces)
    records = search.run([_group(search, group) for group in groups], what, "groups")
    taken: dict[str, Piece] = {}
    for group, record in zip(groups, records, strict=True):
        for piece in group:
            own = f"{piece.key} "
            stored = {name.removeprefix(own): blob for name, blob in record.blobs.items() if name.startswith(own)}
            told = {**piece.arguments, "values": record.values[piece.key], "stored": stored}
            taken[piece.key] = replace(piece, function=take_recovered, arguments=told)
    return [taken.get(piece.key, piece) for piece in pieces]


def _alike(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Those that are trained on the same batches in the same way, in their order."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(digest_of({name: piece.arguments[name] for name in SAME}), []).append(piece)
    return list(found.values())


def _that_fit(search: Search, pieces: list[Piece]) -> list[list[Piece]]:
    """As many at once as the worker's memory holds."""
    shape, groups = search.parent.shape, []
    while pieces:
        entries = [tuple(entries_of(shape, blocks_of(piece.arguments["architecture"]))) for piece in pieces]
        count = fit_together(search.job, search.parent, search.reference.shape, entries)
        groups.append(pieces[:count])
        pieces = pieces[count:]
    return groups


def _group(search: Search, pieces: Sequence[Piece]) -> Piece:
    members: dict[str, dict[str, Any]] = {piece.key: piece.arguments for piece in pieces}
    label = "+".join(piece.label for piece in pieces)
    return search.piece(TOGETHER, label, {"members": members}, {"members": sorted(members)})
