"""SIGTERM while Ray may be up: it ends this process the polite way, and the handler for it stays ours."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def terminated_politely() -> Iterator[None]:
    """Turn SIGTERM into SystemExit in the body, so that what it started is ended; the earlier handler comes back."""
    if not _may_handle():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """Put the handler of SIGTERM back after the body, which is Ray's start: the exit code of Ray's own handler says
    success to some."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _may_handle():
            signal.signal(signal.SIGTERM, before)


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()
