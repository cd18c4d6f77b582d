"""The records of a workspace: a file each as workers commit them, and shards of many once there are many.

    records/<stage>/<key>.json     one record, written by the worker
    shards/<stage>/<number>.json   `SHARD` of them, written by the driver, which then takes the single ones away

A store answers one request for a thousand records as fast as for one. Of several records of one piece a single one is
newer than any shard's, and a later shard's newer than an earlier one's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from inlay.cluster.errors import StoreError
from inlay.cluster.pieces import RECORD_SCHEMA, Piece, Record, parse_record, read_record
from inlay.cluster.store import Store

SHARD = 1000
"""Records of a shard."""
_READERS = 16

T = TypeVar("T")
R = TypeVar("R")


def kept_records(store: Store, pieces: Sequence[Piece]) -> dict[str, Record]:
    """Return the committed records among `pieces` by key; one whose blobs are gone does not count."""
    return survey(store, pieces)[0]


def survey(store: Store, pieces: Sequence[Piece]) -> tuple[dict[str, Record], list[str]]:
    """Return the committed records of pieces by key, and the store keys of single ones that miss a blob."""
    found: dict[str, Record] = {}
    for stage in dict.fromkeys(piece.stage for piece in pieces):
        wanted = {piece.key for piece in pieces if piece.stage == stage}
        found |= _of_stage(store, stage, wanted.__contains__)
    if not any(record.blobs for record in found.values()):
        return found, []
    blobs = {name.removeprefix("blobs/") for name in store.list("blobs/")}
    kept = {key: record for key, record in found.items() if blobs.issuperset(record.blobs.values())}
    return kept, [piece.record_key for piece in pieces if piece.key in found and piece.key not in kept]


def other_records(store: Store, stage: str, known: Container[str]) -> dict[str, Record]:
    """Return every committed record of a stage by key, but for those that are known."""
    return _of_stage(store, stage, lambda key: key not in known)


def _of_stage(store: Store, stage: str, wanted: Callable[[str], bool]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for shard in _together(lambda name: _shard(store.url, name), store.list(f"shards/{stage}/")):
        found |= {key: record for key, record in shard.items() if wanted(key)}
    single = {name.rpartition("/")[2].removesuffix(".json"): name for name in store.list(f"records/{stage}/")}
    names = [name for key, name in single.items() if wanted(key)]
    return found | {record.key: record for record in _together(lambda name: read_record(store, name), names)}


@lru_cache(maxsize=1024)
def _shard(url: str, name: str) -> dict[str, Record]:
    """The records of a shard, which is never changed."""
    store = Store(url)
    try:
        value = store.get_json(name)
        if not isinstance(value, dict) or value.get("schema") != RECORD_SCHEMA:
            raise ValueError(f"it is not of schema {RECORD_SCHEMA}")
        records = [parse_record(json.dumps(each).encode(), f"{url}/{name}") for each in value["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{url}/{name} is damaged ({error}); delete it and give the same command again: its pieces are made anew"
        ) from error
    return {record.key: record for record in records}


def pack(store: Store, records: Sequence[Record]) -> None:
    """Put committed single records of one stage into a shard, and take them away.

    Only who holds the workspace does. A crash in between leaves both, which is harmless.
    """
    stage = records[0].stage
    last = max((int(name[-11:-5]) for name in store.list(f"shards/{stage}/")), default=0)
    packed = [json.loads(record.to_bytes()) for record in records]
    store.put_json(f"shards/{stage}/{last + 1:06d}.json", {"schema": RECORD_SCHEMA, "records": packed})
    store.delete_all(f"records/{stage}/{record.key}.json" for record in records)


class Packing:
    """Packs the records of a fan-out's stages as they come, `SHARD` at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._single: dict[str, list[Record]] = {}

    def add(self, record: Record) -> None:
        """Take in a record that was committed as a single one."""
        single = self._single.setdefault(record.stage, [])
        single.append(record)
        if len(single) >= SHARD:
            pack(self._store, single)
            single.clear()


def _together(read: Callable[[T], R], names: Iterable[T]) -> list[R]:
    """What each of them reads as, several at a time."""
    held = list(names)
    if len(held) < 2:
        return [read(name) for name in held]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, held))
