"""The head of a running cluster: whether it is there, and what is asked of it without waiting for a lost one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import ParamSpec, TypeVar

from inlay.cluster.errors import ConnectError

LOST_SECONDS = 30.0
"""A head may be silent for so long before its cluster counts as lost; after twice that Ray ends the process itself."""
_LOOK_SECONDS = 0.5

P = ParamSpec("P")
T = TypeVar("T")


class Head:
    """The head of the cluster that this process is connected to."""

    def __init__(self, address: str | None) -> None:
        """`address` is its `host:port`; None is a Ray of our own, which is there as long as this process is."""
        self.lost = False
        """Whether it has been silent for so long that Ray is not to be asked anything any more."""
        self._address = address
        self._silent_since: float | None = None

    def answers(self) -> bool:
        """Tell whether it is there; raises ConnectError when it was silent for too long.

        Ray waits for a minute inside the calls that need the head, and then ends the process without a word to it.
        """
        if self._address is None:
            return True
        try:
            _connect(self._address)
        except OSError:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since < LOST_SECONDS:
                return False
            self.lost = True
            raise self._loss() from None
        self._silent_since = None
        return True

    def ask(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return what a call of Ray's returns; raises ConnectError as `answers` does.

        All that the driver asks of a running cluster goes through here. The call is made in a thread of its own, which
        is left behind when the head is lost: nothing else ends such a call before Ray ends the process.
        """
        if self._address is None:
            return call(*args, **options)
        if self.lost:
            raise self._loss()
        future: Future[T] = Future()
        threading.Thread(target=_fulfil, args=(future, partial(call, *args, **options)), daemon=True).start()
        while not wait([future], timeout=_LOOK_SECONDS).done:
            self.answers()
        if future.exception() is not None:
            self.confirm()
        return future.result()

    def confirm(self) -> None:
        """Return once the head is known to be there after something was lost; raises ConnectError as `answers` does.

        What ran on the head's machine does not end at the very same moment as the head.
        """
        if self._address is None:
            return
        time.sleep(_LOOK_SECONDS)
        while not self.answers():
            time.sleep(_LOOK_SECONDS)

    def _loss(self) -> ConnectError:
        return ConnectError(f"the Ray cluster at {self._address} was lost: its head does not answer")


def check_reachable(address: str) -> None:
    """Raise ConnectionError when nothing listens at `host:port`; Ray itself would say so after minutes only.

    `auto` is what RAY_ADDRESS says; other forms of an address are left to Ray.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    _, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "://" not in address:
        try:
            _connect(address)
        except OSError as error:
            raise ConnectionError(f"nothing answers at {address} ({error.strerror or error})") from error


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
