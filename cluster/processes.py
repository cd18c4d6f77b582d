"""Processes that we start and end ourselves: told apart from others that got the same id, ended with all their
children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Spawned:
    """A process of ours, the leader of its own session."""

    pid: int
    started: float
    """Its start, seconds of the epoch: with the id it names one process for ever."""

    @property
    def alive(self) -> bool:
        """Whether that very process runs."""
        return _same(self.pid, self.started) is not None


def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path, umask: int = -1) -> Spawned:
    """Start a command in a session of its own, with its output appended to `log`, readable by this account only.

    `umask` is that of the files it makes; -1 keeps this process's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    try:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            umask=umask,
            cwd=log.parent,
        )
    finally:
        os.close(descriptor)
    return Spawned(process.pid, psutil.Process(process.pid).create_time())


def end(spawned: Spawned, patience_seconds: float = 20.0) -> None:
    """End a process and everything that came from it: politely first, by force what is left after the patience."""
    leader = _same(spawned.pid, spawned.started)
    family = _family(leader) if leader is not None else []
    if leader is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            leader.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline and _running(family):
        time.sleep(0.1)
    # Some come from the session after the leader is gone, when nothing leads from it to them any more.
    for process in [*_running(family), *_session(spawned)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)


def free_port(wished: int) -> int:
    """Return `wished` where nothing has it on the loopback, else any free port."""
    for port in (wished, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise OSError("this machine has no free port on its loopback")


def _same(pid: int, started: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.NoSuchProcess:
        pass  # it is gone, which is the answer
    return None


def _started(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _family(leader: psutil.Process) -> list[psutil.Process]:
    try:
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _running(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    running = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


def _session(spawned: Spawned) -> list[psutil.Process]:
    """Return what still runs in the session that the process led; nobody else's.

    The kernel gives no process the id of a session that has members: where another process has the id, ours is gone.
    """
    members: list[psutil.Process] = []
    if _started(spawned.pid) - spawned.started > 1.0:
        return members
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == spawned.pid and process.create_time() >= spawned.started - 1.0:
                members.append(process)
    return members
