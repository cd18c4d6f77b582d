"""Workers that hold a GPU and stay from piece to piece: a new process imports everything and reads every layer again.

On CPUs Ray's own workers stay. One that has used a GPU cannot be given another piece by Ray, which may choose another
GPU for it; an actor keeps its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

from inlay.cluster.head import Head
from inlay.cluster.worker import Order, StayingWorker

IDLE_SECONDS = 60.0
"""A worker that has had nothing to do for so long gives its GPU back."""
_Kind = tuple[tuple[str, Any], ...]


class StayingWorkers:
    """The GPU workers of one connection to Ray.

    Only workers of the kind that was asked for last wait for more: before another kind is sent, and while something
    else wants GPUs, those that are idle are ended, so that nothing waits for a GPU that nobody uses.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._idle: dict[_Kind, list[Any]] = {}
        self._busy: dict[Any, tuple[_Kind, Any]] = {}
        self._others: set[Any] = set()
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def send(self, order: Order, name: str, options: Mapping[str, Any]) -> Any:
        """Have a worker with these options run a piece: one that is idle, else a new one. Returns its reference."""
        import ray

        kind = _kind_of(options)
        with self._lock:
            self.dismiss(but=kind)
            idle = self._idle.get(kind)
            worker = idle.pop() if idle else self._head.ask(ray.remote(StayingWorker).options(**options).remote)
            run: Any = worker.execute
            reference = self._head.ask(run.options(name=name).remote, order)
            self._busy[reference] = (kind, worker)
        return reference

    def stand_back(self, reference: Any) -> None:
        """Something else that wants GPUs was sent: until it is over no worker waits for more."""
        with self._lock:
            self._others.add(reference)
            self.dismiss()

    def over(self, reference: Any, *, reusable: bool) -> None:
        """A piece is over; its worker waits for the next one, unless it was lost or ran out of memory."""
        with self._lock:
            self._others.discard(reference)
            if reference not in self._busy:
                return
            kind, worker = self._busy.pop(reference)
            same = all(kind == other for other, _ in self._busy.values())
            if reusable and same and not self._others:
                self._idle.setdefault(kind, []).append(worker)
                self._dismiss_later()
            else:
                self._end(worker)

    def cancel(self, reference: Any) -> bool:
        """End a piece with its worker; False where it has none that stays."""
        with self._lock:
            held = self._busy.get(reference)
        if held is not None:
            self._end(held[1])
        return held is not None

    def dismiss(self, but: _Kind | None = None) -> None:
        """End those that wait, but for one kind."""
        with self._lock:
            for kind in [kind for kind in self._idle if kind != but]:
                for worker in self._idle.pop(kind):
                    self._end(worker)

    def close(self) -> None:
        """No more is sent."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._idle.clear()  # they end with the connection

    def _dismiss_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(IDLE_SECONDS, self.dismiss)
        self._timer.daemon = True
        self._timer.start()

    def _end(self, worker: Any) -> None:
        import ray

        with contextlib.suppress(Exception):  # it may be gone, and so may be the head, which the next question tells
            self._head.ask(ray.kill, worker)


def _kind_of(options: Mapping[str, Any]) -> _Kind:
    """What workers have in common that can run each other's pieces."""
    flat = {name: tuple(sorted(value.items())) if isinstance(value, dict) else value for name, value in options.items()}
    return tuple(sorted(flat.items(), key=lambda item: item[0]))
