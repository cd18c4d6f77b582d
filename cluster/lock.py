"""The lock of a workspace: one run at a time, a dead owner is taken over, a live one is named.

A lock is a chain of records `lock/<generation>.json`: the owner is whoever created the highest one, with
`put_if_absent`, so two newcomers never both take over. A run of the same machine is dead when its process is. One of
another machine, or of another container, is watched: it is alive as soon as its record changes, and dead when that has
not changed for the length of its lease, by the watcher's own clock: clocks of two machines are never compared.

An owner may be taken for dead while it lives. So it asks `Lock.check` before every commit: a newer generation ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.cluster.errors import AbsentError, LockedError, StoreError
from inlay.cluster.store import Store, json_bytes

LEASE_SECONDS = 90.0
"""An owner that has not renewed its record for so long is taken for dead."""
_RENEWALS = 4.5
"""In one lease."""
_READS = 3
"""Of the lock, until a store that fails is believed."""
_KEY = re.compile(r"lock/(\d{9})\.json")


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
    """Seconds of the epoch, to be shown and never compared."""

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.name or 'a run'} (process {self.pid} on {self.host}, since {since})"


@dataclass(frozen=True)
class _State:
    """The highest generation as it was read; None as owner where its record is damaged."""

    generation: int
    content: bytes
    owner: Owner | None
    released: bool
    lease_seconds: float | None

    @property
    def holds(self) -> bool:
        """Whether it may be held: by a process of this machine that lives, or by anybody elsewhere."""
        if self.released:
            return False
        if self.owner is not None and _is_here(self.owner):
            return _process_started(self.owner.pid) == self.owner.process_started
        return True


class Lock:
    """A lock that is held; renewed by a thread until it is let go."""

    def __init__(self, store: Store, generation: int, owner: Owner, lease_seconds: float) -> None:
        self.owner = owner
        self._store, self._generation, self._lease = store, generation, lease_seconds
        self._renewals = 0
        self._renewed = time.monotonic()
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="inlay-lock")
        self._thread.start()

    def check(self) -> None:
        """Return when this run still holds the lock; to be called right before a commit.

        Raises LockedError when another has taken it over, StoreError when that cannot be known.
        """
        if time.monotonic() - self._renewed > self._lease / 2:
            self._renew()  # others may be about to take this run for dead
        now = _state(self._store)
        if not self._is_ours(now):
            taker = "another run" if now is None or now.owner is None else str(now.owner)
            raise LockedError(
                f"the workspace {self._store.url} was taken over by {taker}, since this run had not renewed its lock "
                f"for {self._lease:g} s; what it finished is kept, and it commits nothing more"
            )

    def release(self) -> None:
        """Let the lock go; what another has taken over stays with that one."""
        self._stop.set()
        self._thread.join()
        key = _key(self._generation)
        try:
            now = _state(self._store)
            if self._is_ours(now):
                self._store.put(key, self._content(released=True))
            elif now is not None and now.generation > self._generation:
                self._store.delete(key)
        except StoreError:  # a full disk has no room for the new record, but lets the old one go
            self._store.delete(key)

    def _is_ours(self, now: _State | None) -> bool:
        return now is not None and now.generation == self._generation and now.owner in (self.owner, None)

    def _keep_renewing(self) -> None:
        while not self._stop.wait(self._lease / _RENEWALS):
            with contextlib.suppress(StoreError):  # it may be back at the next renewal; `check` says when it is not
                self._renew()

    def _renew(self) -> None:
        started = time.monotonic()
        with self._writing:
            self._renewals += 1
            self._store.put(_key(self._generation), self._content(released=False))
        self._renewed = started

    def _content(self, *, released: bool) -> bytes:
        return _record(self.owner, self._renewals, self._lease, released=released)


@contextlib.contextmanager
def locked(
    store: Store,
    name: str = "",
    on_watch: Callable[[str], None] = lambda text: None,
    lease_seconds: float = LEASE_SECONDS,
) -> Iterator[Lock]:
    """Hold the store's lock as `name` for the body.

    `on_watch` is told when an owner elsewhere has to be watched for a while to know whether it lives; one whose record
    does not say so is given `lease_seconds`, which is what this run's own record promises.

    Raises LockedError naming a live owner; StoreError for a store that cannot be reached, or where a lock cannot hold.
    """
    _check_conditional_writes(store)
    owner = _myself(name)
    dead = _watch(store, on_watch, lease_seconds)
    lock = Lock(store, _acquire(store, owner, dead, lease_seconds), owner, lease_seconds)
    try:
        yield lock
    finally:
        lock.release()


def lock_owner(store: Store) -> Owner | None:
    """Return who holds the store's lock; one on another machine may have died since."""
    state = _state(store)
    return state.owner if state is not None and state.holds else None


def _check_conditional_writes(store: Store) -> None:
    """Raise StoreError unless only the first of two writers of one name wins."""
    key = f"lock/probe-{uuid.uuid4().hex}"
    try:
        won = [store.put_if_absent(key, b"probe"), store.put_if_absent(key, b"probe")]
    finally:
        with contextlib.suppress(StoreError):  # nobody reads it
            store.delete(key)
    if won != [True, False]:
        raise StoreError(
            f"the store {store.url} does not honour conditional writes (If-None-Match), without which two runs could "
            "take one workspace; name a folder, or a store that honours them, with --workspace"
        )


def _watch(store: Store, on_watch: Callable[[str], None], lease_seconds: float) -> _State | None:
    """Return the state that may be taken over, None where there is none yet; raises LockedError for a live owner.

    An owner on another machine, who may be dead, is watched until it shows that it lives or its lease is over.
    """
    state = _state(store)
    if state is None or not state.holds:
        return state
    if state.owner is not None and _is_here(state.owner):
        raise LockedError(_in_use(store, state.owner))
    lease = state.lease_seconds or lease_seconds
    holder = state.owner or "a run whose lock is damaged"
    on_watch(f"the workspace is held by {holder}; watching for up to {lease:g} s whether it still lives")
    started = time.monotonic()
    while True:
        time.sleep(min(1.0, lease / 4))
        try:
            now = _state(store)
        except StoreError:
            if time.monotonic() - started > 3 * lease:
                raise
            continue  # what cannot be read says nothing of its owner
        if now is None or not now.holds:
            return now
        if now.content != state.content or now.generation != state.generation:
            raise LockedError(_in_use(store, now.owner or state.owner))
        if time.monotonic() - started > lease:
            return now


def _acquire(store: Store, owner: Owner, dead: _State | None, lease_seconds: float) -> int:
    generation = 1 if dead is None else dead.generation + 1
    key = _key(generation)
    won = store.put_if_absent(key, _record(owner, 0, lease_seconds, released=False))
    try:
        state = _state(store)
    except StoreError:
        if won:
            store.delete(key)
        raise
    if not won or state is None or state.generation != generation or state.owner != owner:
        if won:  # of a generation that others have passed
            store.delete(key)
        other = f" ({state.owner})" if state is not None and state.owner is not None else ""
        raise LockedError(f"the workspace {store.url} was taken by another run at the same moment{other}")
    for older in _keys(store):
        if older < key:
            with contextlib.suppress(StoreError):  # the next owner takes it away
                store.delete(older)
    return generation


def _state(store: Store) -> _State | None:
    """Return the highest generation, None where there is none; raises StoreError when it cannot be read."""
    for attempt in range(1, _READS + 1):
        try:
            keys = _keys(store)
            if not keys:
                return None
            return _parsed(_generation(keys[-1]), store.get(keys[-1]))
        except AbsentError:
            continue  # a newer one came, and this one went, in between
        except StoreError:
            if attempt == _READS:
                raise
            time.sleep(0.2 * attempt)
    raise StoreError(f"{store.url}/lock changes faster than it can be read; give the same command again")


def _parsed(generation: int, content: bytes) -> _State:
    try:
        record: dict[str, Any] = json.loads(content)
        owner = Owner(**record["owner"])
        return _State(generation, content, owner, bool(record["released"]), float(record["lease_seconds"]))
    except (ValueError, TypeError, KeyError):
        return _State(generation, content, None, False, None)


def _is_here(owner: Owner) -> bool:
    return bool(owner.machine) and owner.machine == _machine()


def _record(owner: Owner, renewals: int, lease_seconds: float, *, released: bool) -> bytes:
    values = {"owner": asdict(owner), "renewed": renewals, "lease_seconds": lease_seconds, "released": released}
    return json_bytes(values | {"schema": 2})


def _keys(store: Store) -> list[str]:
    return [key for key in store.list("lock/") if _KEY.fullmatch(key)]


def _key(generation: int) -> str:
    return f"lock/{generation:09d}.json"


def _generation(key: str) -> int:
    return int(key.removeprefix("lock/").removesuffix(".json"))


def _in_use(store: Store, owner: Owner | None) -> str:
    holder = owner or "a run whose lock is damaged"
    return f"the workspace {store.url} is in use by {holder}; wait for it, stop it, or choose another with --workspace"


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
