"""The workspace lock with real processes: refused while its owner lives, taken over when it died."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster import LockedError, Store, lock_owner, locked
from inlay.cluster.lock import STALE_SECONDS

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
    with locked(store, "job-2") as mine:
        assert lock_owner(store) == mine
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


def held_elsewhere(store: Store, age: float) -> dict[str, Any]:
    """Return the lock record of a run on another machine, renewed `age` seconds ago."""
    with locked(store, "far"):
        record: dict[str, Any] = json.loads(store.get("lock/000000001.json"))
    record |= {"released": False, "renewed": record["renewed"] - age}
    record["owner"] |= {"machine": "another", "host": "node-7", "pid": 1}
    store.put_json("lock/000000001.json", record)
    return record


def test_an_owner_elsewhere_that_does_not_renew_is_watched_and_taken_over(store: Store) -> None:
    held_elsewhere(store, STALE_SECONDS - 2.5)
    told: list[str] = []
    started = time.monotonic()
    with locked(store, "near", told.append) as owner:
        assert 1 < time.monotonic() - started < 10
        assert lock_owner(store) == owner
    (text,) = told
    assert re.fullmatch(
        r"the workspace is held by far \(process 1 on node-7.*\); watching for up to 90 s whether.*", text
    )


def test_an_owner_elsewhere_that_renews_is_alive(store: Store) -> None:
    record = held_elsewhere(store, 10)
    renewal = threading.Timer(1.5, store.put_json, ("lock/000000001.json", record | {"renewed": time.time()}))
    renewal.start()
    with pytest.raises(LockedError, match=r"in use by far .*node-7"), locked(store, "near"):
        pass
    renewal.join()


def test_a_damaged_lock_record_does_not_block(store: Store, tmp_path: Path) -> None:
    store.put("lock/000000004.json", b"{")
    with locked(store, "job"):
        assert store.list("lock/") == ["lock/000000005.json"]
