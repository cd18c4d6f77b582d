"""Records are found whether they lie by themselves or in shards, and the newest of a piece counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inlay.cluster import Piece, PieceContext, PieceOutput, Record, Store, StoreError, kept_records, piece_key
from inlay.cluster import records as module
from inlay.cluster.here import run_pieces_here
from inlay.cluster.records import Packing, other_records, pack, survey


def squared(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    number = arguments["number"]
    return PieceOutput({"square": number**2}, {"bytes": b"%d" % number} if arguments["blob"] else {})


def pieces(number: int, blob: bool = False) -> list[Piece]:
    labels = [f"number {index}" for index in range(number)]
    keys = [piece_key("squares", 1, {"blob": blob}, {}, label) for label in labels]
    told = [{"number": index, "blob": blob} for index in range(number)]
    return [Piece(*each[:2], "squares", 1, squared, each[2]) for each in zip(keys, labels, told, strict=True)]


@pytest.fixture
def done(store: Store, tmp_path: Path) -> tuple[list[Piece], list[Record]]:
    """Seven pieces and their records, each in a file of its own."""
    made = pieces(7, blob=True)
    return made, run_pieces_here(store, made, tmp_path)


def test_packed_records_are_what_the_single_ones_were(
    store: Store, done: tuple[list[Piece], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, records = done
    monkeypatch.setattr(module, "SHARD", 3)
    packing = Packing(store)
    for record in records:
        packing.add(record)
    assert store.list("shards/") == ["shards/squares/000001.json", "shards/squares/000002.json"]
    assert store.list("records/") == [made[-1].record_key]
    assert survey(store, made) == ({record.key: record for record in records}, [])
    assert kept_records(store, made[2:4]).keys() == {piece.key for piece in made[2:4]}
    known = {piece.key for piece in made[:5]}
    assert other_records(store, "squares", known).keys() == {piece.key for piece in made[5:]}


def test_nothing_that_is_packed_runs_again(
    store: Store, done: tuple[list[Piece], list[Record]], tmp_path: Path
) -> None:
    made, records = done
    pack(store, records)
    assert run_pieces_here(store, made, tmp_path) == records
    assert store.list("records/") == []


def test_a_single_record_is_newer_than_a_shards_and_a_later_shard_than_an_earlier_one(
    store: Store, done: tuple[list[Piece], list[Record]]
) -> None:
    made, records = done
    pack(store, records)
    again = [Record(**{**vars(records[0]), "seconds": seconds}) for seconds in (5.0, 6.0)]
    pack(store, again[:1])
    assert kept_records(store, made)[made[0].key].seconds == 5
    store.put(made[0].record_key, again[1].to_bytes())
    assert kept_records(store, made)[made[0].key].seconds == 6


def test_what_misses_a_blob_does_not_count_and_is_made_again(
    store: Store, done: tuple[list[Piece], list[Record]], tmp_path: Path
) -> None:
    made, records = done
    pack(store, records[:4])
    for record in (records[0], records[5]):
        store.delete(f"blobs/{record.blobs['bytes']}")
    kept, stale = survey(store, made)
    assert kept.keys() == {piece.key for piece in made} - {made[0].key, made[5].key}
    assert made[5].record_key in stale
    again = run_pieces_here(store, made, tmp_path)
    assert [record.identity() for record in again] == [record.identity() for record in records]
    assert len(kept_records(store, made)) == len(made)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"schema": 99, "records": []}', b'{"schema": 1, "records": [{"key": 1}]}']
)
def test_a_shard_that_is_cut_short_is_said_before_anything_runs(
    store: Store, done: tuple[list[Piece], list[Record]], content: bytes
) -> None:
    made, records = done
    pack(store, records)
    store.put("shards/squares/000002.json", content)
    with pytest.raises(StoreError, match=r"shards/squares/000002\.json is (damaged|not a record).*"):
        survey(store, made)
