"""Pieces in this process: the same records as workers commit, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster.errors import PieceError
from inlay.cluster.here import run_pieces_here
from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, piece_key, piece_seed, read_record
from inlay.cluster.store import Store


def make(label: str, x: int) -> Piece:
    key = piece_key("work", 1, {}, {}, label)
    return Piece(key, label, "work", 1, square, {"x": x}, seed=piece_seed(7, label))


def square(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    if arguments["x"] < 0:
        raise ValueError("below zero")
    context.progress(0.5)
    (context.scratch / f"ran-{arguments['x']}").touch()
    return PieceOutput({"square": arguments["x"] ** 2, "seed": context.seed}, {"bytes": b"x" * arguments["x"]})


def test_records_are_committed_once_in_order(tmp_path: Path) -> None:
    store, scratch = Store(str(tmp_path / "store")), tmp_path / "scratch"
    pieces = [make("three", 3), make("two", 2)]
    records = run_pieces_here(store, pieces, scratch)
    assert [record.values["square"] for record in records] == [9, 4]
    assert [read_record(store, piece.record_key) for piece in pieces] == records
    for file in scratch.iterdir():
        file.unlink()
    assert run_pieces_here(store, pieces, scratch) == records
    assert not list(scratch.iterdir()), "what is committed is only read"


def test_a_record_without_its_blob_is_made_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (first,) = run_pieces_here(store, [make("three", 3)], tmp_path / "scratch")
    store.delete(f"blobs/{first.blobs['bytes']}")
    (again,) = run_pieces_here(store, [make("three", 3)], tmp_path / "scratch")
    assert again.identity() == first.identity()
    assert store.get(f"blobs/{first.blobs['bytes']}") == b"xxx"


def test_what_a_function_raises_is_told_and_what_was_before_it_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with pytest.raises(PieceError, match="work, bad: ValueError: below zero") as caught:
        run_pieces_here(store, [make("good", 1), make("bad", -1)], tmp_path / "scratch")
    assert (caught.value.kind, caught.value.kept) == ("ValueError", 1)
    assert store.list("records/work/") == [make("good", 1).record_key]


def test_ray_is_not_even_imported() -> None:
    code = "import sys, inlay.cluster.here; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
