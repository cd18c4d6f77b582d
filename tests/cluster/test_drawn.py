"""Pieces that are made while others run, and pieces that the driver calls off."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster import Cluster, Piece, PieceContext, PieceError, PieceEvent, PieceOutput, Record, Store, run_pieces
from inlay.cluster.pieces import piece_key


def make(function: Any, label: str, **arguments: Any) -> Piece:
    key = piece_key("drawn", 1, {}, {}, label)
    return Piece(key=key, label=label, stage="drawn", version=1, function=function, arguments=arguments)


def square(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    return PieceOutput({"square": arguments["x"] ** 2})


def meet(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    place = Path(arguments["place"])
    (place / f"{arguments['name']}.here").touch()
    deadline = time.monotonic() + 60
    while len(list(place.glob("*.here"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return PieceOutput({"met": len(list(place.glob("*.here"))) == 2})


def nap(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    time.sleep(arguments["seconds"])
    return PieceOutput()


def endless(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    for step in range(1, 600):
        context.progress(step / 600, {"step": step})
        if context.progress.called_off():
            return PieceOutput({"called_off": True})
        time.sleep(0.05)
    return PieceOutput({"called_off": False})


def broken(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    raise RuntimeError("no luck")


def test_a_piece_is_made_of_what_those_before_it_came_to(cluster: Cluster, store: Store) -> None:
    """Each of a chain needs the record of the one before: while that runs, there is none to be sent."""
    found: list[int] = [3]
    running: list[str] = []

    def take(record: Record) -> None:
        found.append(record.values["square"])
        running.clear()

    def more() -> Piece | None:
        if running or len(found) > 3:
            return None
        running.append(f"square of {found[-1]}")
        return make(square, running[0], x=found[-1])

    records = run_pieces(store, [], cluster, more=more, on_record=take)
    assert found == [3, 9, 81, 6561]
    assert [record.label for record in records] == ["square of 3", "square of 9", "square of 81"]


def test_as_many_are_drawn_as_have_room(cluster: Cluster, store: Store, tmp_path: Path) -> None:
    """Each piece waits for another one: with one at a time the first would never end."""
    drawn: list[Piece] = []

    def more() -> Piece | None:
        if len(drawn) == 2:
            return None
        drawn.append(make(meet, f"guest {len(drawn)}", place=str(tmp_path), name=f"guest {len(drawn)}"))
        return drawn[-1]

    records = run_pieces(store, [], cluster, more=more)
    assert [record.values["met"] for record in records] == [True, True]


def test_a_piece_that_is_called_off_may_end_early(cluster: Cluster, store: Store) -> None:
    piece = make(endless, "endless")
    off: set[str] = set()

    def hear(event: PieceEvent) -> None:
        if event.numbers.get("step", 0) >= 5:
            off.add(piece.key)

    (record,) = run_pieces(store, [piece], cluster, on_event=hear, called_off=off)
    assert record.values == {"called_off": True}


def test_after_a_failure_none_is_drawn(cluster: Cluster, store: Store) -> None:
    left = [make(square, "never", x=1), make(broken, "broken")]
    with pytest.raises(PieceError, match="no luck") as raised:
        run_pieces(store, [make(nap, "nap", seconds=3.0)], cluster, more=lambda: left.pop() if left else None)
    assert raised.value.label == "broken"
    assert [piece.label for piece in left] == ["never"]
    assert len(store.list("records/drawn/")) == 1, "what had begun was committed"
