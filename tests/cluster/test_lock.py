"""The workspace lock with real processes: refused while its owner lives, taken over when it died."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from inlay.cluster import LockedError, Store, StoreError, json_bytes, lock_owner, locked

HOLD = """
import sys, time
from inlay.cluster import Store, locked
with locked(Store(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(store: Store, name: str, seconds: float = 60) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, store.url, name, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_live_owner_is_named_and_a_dead_one_is_taken_over(store: Store) -> None:
    process = hold(store, "job-1")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    named = rf"in use by job-1 \(process {process.pid} on .*, since 20.*--workspace"
    with pytest.raises(LockedError, match=named), locked(store, "job-2"):
        pass
    owner = lock_owner(store)
    assert owner is not None
    assert owner.name == "job-1"
    process.kill()
    process.wait()
    assert lock_owner(store) is None
    with locked(store, "job-2") as lock:
        assert lock_owner(store) == lock.owner
    assert lock_owner(store) is None


def test_a_released_lock_is_free_and_leaves_one_small_record(store: Store) -> None:
    for number in range(3):
        with locked(store, f"job-{number}"):
            pass
    assert store.list() == ["lock/000000003.json"]


def test_the_lock_is_released_when_the_body_fails(store: Store) -> None:
    with pytest.raises(RuntimeError, match="body"), locked(store):
        raise RuntimeError("body")
    with locked(store):
        pass


def test_one_of_many_newcomers_takes_over(store: Store) -> None:
    process = hold(store, "dead")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    newcomers = [hold(store, f"newcomer-{number}", 3) for number in range(4)]
    outputs = [newcomer.communicate(timeout=60) for newcomer in newcomers]
    assert [output[0] for output in outputs].count("held\n") == 1
    assert sum("LockedError" in output[1] for output in outputs) == 3


def test_a_process_id_used_again_is_another_process(store: Store) -> None:
    with locked(store, "old"):
        record = json.loads(store.get("lock/000000001.json"))
    record["released"] = False
    record["owner"]["process_started"] = "1"
    store.put_json("lock/000000001.json", record)
    with locked(store, "new"):
        pass


def held_elsewhere(store: Store, lease_seconds: float) -> dict[str, Any]:
    """Return the lock record of a run on another machine, which takes itself for lost after `lease_seconds`."""
    with locked(store, "far"):
        record: dict[str, Any] = json.loads(store.get("lock/000000001.json"))
    record |= {"released": False, "renewed": 1, "lease_seconds": lease_seconds}
    record["owner"] |= {"machine": "another", "host": "node-7", "pid": 1}
    store.put_json("lock/000000001.json", record)
    return record


def test_an_owner_elsewhere_that_does_not_renew_is_watched_and_taken_over(store: Store) -> None:
    held_elsewhere(store, 2.5)
    told: list[str] = []
    started = time.monotonic()
    with locked(store, "near", told.append) as lock:
        assert 2.5 < time.monotonic() - started < 20
        assert lock_owner(store) == lock.owner
    (text,) = told
    assert re.fullmatch(
        r"the workspace is held by far \(process 1 on node-7.*\); watching for up to 2\.5 s whether.*", text
    )


@pytest.mark.parametrize("clock", [-1000.0, 0.0, 1000.0])
def test_an_owner_elsewhere_that_renews_is_alive_whatever_its_clock_says(store: Store, clock: float) -> None:
    record = held_elsewhere(store, 60)
    store.put_json("lock/000000001.json", record | {"renewed": time.time() + clock})
    renewal = threading.Timer(
        1.5, store.put_json, ("lock/000000001.json", record | {"renewed": time.time() + clock + 2})
    )
    renewal.start()
    try:
        with pytest.raises(LockedError, match=r"in use by far .*node-7"), locked(store, "near"):
            pass
    finally:
        renewal.join()


def test_a_damaged_lock_record_is_watched_and_does_not_block(store: Store) -> None:
    store.put("lock/000000004.json", b"{")
    told: list[str] = []
    with locked(store, "job", told.append, lease_seconds=1.0):
        assert store.list("lock/") == ["lock/000000005.json"]
    assert told == [
        "the workspace is held by a run whose lock is damaged; watching for up to 1 s whether it still lives"
    ]


def test_a_damaged_lock_record_of_a_live_owner_is_respected(store: Store) -> None:
    record = held_elsewhere(store, 60)
    store.put("lock/000000001.json", b"")
    renewal = threading.Timer(1.0, store.put_json, ("lock/000000001.json", record))
    renewal.start()
    try:
        with pytest.raises(LockedError, match="in use by far"), locked(store, "near", lease_seconds=30.0):
            pass
    finally:
        renewal.join()


def take_over(store: Store) -> None:
    """What a newcomer on another machine writes when it takes the lock of the first owner."""
    record = json.loads(store.get("lock/000000001.json"))
    record["owner"] |= {"token": "another", "name": "newcomer", "machine": "another", "host": "node-7"}
    assert store.put_if_absent("lock/000000002.json", json_bytes(record))


def test_an_owner_that_was_taken_over_is_told_before_it_commits(store: Store) -> None:
    with locked(store, "old") as lock:
        lock.check()
        take_over(store)
        with pytest.raises(LockedError, match=r"was taken over by newcomer \(process .* on node-7, .*what it fin"):
            lock.check()
    owner = lock_owner(store)
    assert owner is not None, "the release of the old owner must leave the newcomer's lock"
    assert owner.name == "newcomer"


def test_an_owner_that_was_taken_over_and_released_is_told_too(store: Store) -> None:
    with locked(store, "old") as lock:
        store.delete("lock/000000001.json")
        with locked(store, "next"):
            pass
        with pytest.raises(LockedError, match="was taken over by next"):
            lock.check()


def test_an_owner_renews_its_record_until_it_lets_go(store: Store) -> None:
    with locked(store, "job", lease_seconds=1.0):
        before = store.get("lock/000000001.json")
        assert until(lambda: store.get("lock/000000001.json") != before)


class Unsteady(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory whose network can be cut: any other error than OSError, as those of real clients."""

    protocol = "unsteady"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cut: ClassVar[set[str]] = set()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._reach("read")
        return bytes(super().cat_file(path, start, end, **options))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._reach("write")
        super().pipe_file(path, value, mode, **options)

    def find(self, path: str, *positional: Any, **options: Any) -> Any:
        self._reach("list")
        return super().find(path, *positional, **options)

    def _reach(self, what: str) -> None:
        if what in self.cut:
            raise RuntimeError("Could not connect to the endpoint URL")


class Careless(MemoryFileSystem):  # type: ignore[misc]
    """A store that takes conditional writes for plain ones."""

    protocol = "careless"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, "overwrite", **options)


@pytest.fixture
def unsteady(tmp_path: Path) -> Iterator[Store]:
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    yield Store(f"unsteady://{tmp_path.name}/workspace")
    Unsteady.cut.clear()


def test_a_lock_that_cannot_be_read_is_not_free(unsteady: Store) -> None:
    with locked(unsteady, "owner"):
        for what in ("read", "list"):
            Unsteady.cut.add(what)
            with pytest.raises(StoreError, match="Could not connect"), locked(unsteady, "newcomer", lease_seconds=1.0):
                pass
            Unsteady.cut.clear()
        assert unsteady.list("lock/") == ["lock/000000001.json"]


def test_an_owner_elsewhere_is_watched_through_failing_reads(unsteady: Store) -> None:
    record = held_elsewhere(unsteady, 4)
    steps = [
        threading.Timer(0.5, Unsteady.cut.add, ("read",)),
        threading.Timer(2.0, unsteady.put_json, ("lock/000000001.json", record | {"renewed": 2})),
        threading.Timer(5.0, Unsteady.cut.clear),
    ]
    for step in steps:
        step.start()
    try:
        with pytest.raises(LockedError, match="in use by far"), locked(unsteady, "near"):
            pass
    finally:
        for step in steps:
            step.join()


def test_renewals_go_on_after_a_store_was_away(unsteady: Store) -> None:
    with locked(unsteady, "owner", lease_seconds=1.0) as lock:
        Unsteady.cut.update(("write", "list"))
        time.sleep(1.5)
        with pytest.raises(StoreError, match="Could not connect"):
            lock.check()
        Unsteady.cut.clear()
        before = unsteady.get("lock/000000001.json")
        assert until(lambda: unsteady.get("lock/000000001.json") != before)
        lock.check()


def test_a_store_without_conditional_writes_is_refused_by_name(tmp_path: Path) -> None:
    fsspec.register_implementation("careless", Careless, clobber=True)
    store = Store(f"careless://{tmp_path.name}/workspace")
    said = r"the store careless://.*/workspace does not honour conditional writes .*--workspace"
    with pytest.raises(StoreError, match=said), locked(store, "job"):
        pass
    assert store.list() == []


def until(condition: Callable[[], bool], patience_seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + patience_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
