"""The lock of a workspace: one run at a time, a dead owner is taken over, a live one is named.

A lock is a chain of records `lock/<generation>.json`: the owner is whoever created the highest one, with
`put_if_absent`, so two newcomers never both take over. A run of the same machine is dead when its process is. One of
another machine, or of another container, is watched: it is alive as soon as it renews its record, and dead when it has
not for `STALE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.cluster.errors import LockedError, StoreError
from inlay.cluster.store import Store, json_bytes

RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    token: str
    host: str
    machine: str
    """Boot id and process namespace: equal ones see the same process ids."""
    pid: int
    process_started: str
    """Start time of the process in the kernel's words, since process ids are used again."""
    name: str
    """What people know the run by, such as a job id."""
    since: float
    """Seconds of the epoch."""

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.name or 'a run'} (process {self.pid} on {self.host}, since {since})"


@contextlib.contextmanager
def locked(store: Store, name: str = "", on_watch: Callable[[str], None] = lambda text: None) -> Iterator[Owner]:
    """Hold the store's lock as `name` for the body; raises LockedError naming a live owner.

    `on_watch` is told when an owner elsewhere has to be watched for a while to know whether it lives.
    """
    owner = _myself(name)
    _watch(store, on_watch)
    generation = _acquire(store, owner)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(store, generation, owner, stop), daemon=True, name="inlay-lock")
    renewal.start()
    try:
        yield owner
    finally:
        stop.set()
        renewal.join()
        _release(store, generation, owner)


def lock_owner(store: Store) -> Owner | None:
    """Return who holds the store's lock and lives, else None."""
    state = _state(store)
    return None if state is None or not _holds(state[1]) else _owner(state[1])


def _acquire(store: Store, owner: Owner) -> int:
    state = _state(store)
    generation = 1 if state is None else state[0] + 1
    if state is not None and _holds(state[1]):
        raise LockedError(_in_use(store, _owner(state[1])))
    won = store.put_if_absent(_key(generation), _content(owner, released=False))
    state = _state(store)
    if not won or state is None or state[0] != generation or _owner(state[1]).token != owner.token:
        other = f" ({_owner(state[1])})" if state is not None else ""
        raise LockedError(f"the workspace {store.url} was taken by another run at the same moment{other}")
    for key in store.list("lock/"):
        if key < _key(generation):
            store.delete(key)
    return generation


def _watch(store: Store, on_watch: Callable[[str], None]) -> None:
    """Wait until an owner on another machine, who may be dead, shows that it lives or does not."""
    state = _state(store)
    if state is None or not _holds(state[1]) or _is_here(_owner(state[1])):
        return
    owner = _owner(state[1])
    on_watch(f"the workspace is held by {owner}; watching for up to {STALE_SECONDS:g} s whether it still lives")
    while (now := _state(store)) is not None and now[0] == state[0] and _holds(now[1]):
        if now[1]["renewed"] != state[1]["renewed"]:
            raise LockedError(_in_use(store, owner))
        time.sleep(1)


def _is_here(owner: Owner) -> bool:
    return bool(owner.machine) and owner.machine == _machine()


def _state(store: Store) -> tuple[int, dict[str, Any]] | None:
    """Return the highest generation and its record; a record that vanished or is damaged counts as a released one."""
    keys = store.list("lock/")
    if not keys:
        return None
    generation = int(keys[-1].removeprefix("lock/").removesuffix(".json"))
    try:
        return generation, dict(store.get_json(keys[-1]))
    except StoreError:
        return generation, {"released": True}


def _holds(record: dict[str, Any]) -> bool:
    if record.get("released"):
        return False
    owner = _owner(record)
    if _is_here(owner):
        return _process_started(owner.pid) == owner.process_started
    return time.time() - float(record["renewed"]) < STALE_SECONDS


def _renew(store: Store, generation: int, owner: Owner, stop: threading.Event) -> None:
    while not stop.wait(RENEW_SECONDS):
        with contextlib.suppress(StoreError):  # a store that is full or away now may be back at the next renewal
            _write(store, generation, owner, released=False)


def _release(store: Store, generation: int, owner: Owner) -> None:
    try:
        _write(store, generation, owner, released=True)
    except StoreError:  # a full disk has no room for the new record, but lets the old one go
        store.delete(_key(generation))


def _write(store: Store, generation: int, owner: Owner, *, released: bool) -> None:
    store.put(_key(generation), _content(owner, released=released))


def _content(owner: Owner, *, released: bool) -> bytes:
    return json_bytes({"schema": 1, "owner": asdict(owner), "renewed": time.time(), "released": released})


def _owner(record: dict[str, Any]) -> Owner:
    return Owner(**record["owner"])


def _key(generation: int) -> str:
    return f"lock/{generation:09d}.json"


def _in_use(store: Store, owner: Owner) -> str:
    return f"the workspace {store.url} is in use by {owner}; wait for it, stop it, or choose another with --workspace"


def _myself(name: str) -> Owner:
    return Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()),
        name=name,
        since=time.time(),
    )


def _machine() -> str:
    """Return what identifies this kernel's boot and process namespace; empty where there is no /proc."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_started(pid: int) -> str:
    """Return the start time of a live process in clock ticks since boot; empty for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
