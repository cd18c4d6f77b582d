"""What a fan-out asks of Ray: to run a piece, to say which are over and how far the others are, and to end one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from inlay.cluster.head import Head
from inlay.cluster.ray_private import delete_value, get_values, put_value
from inlay.cluster.staying import StayingWorkers
from inlay.cluster.worker import CALLED_OFF, PROGRESS_NAMESPACE, Order, Outcome, execute, execute_on_gpu


class Tasks(Protocol):
    """Pieces of one fan-out, by references that are given out when they are sent."""

    def send(self, order: Order, **options: Any) -> Any:
        """Have a worker run a piece; `options` are Ray's, such as `num_cpus`. Returns its reference."""

    def completed(self, references: Sequence[Any], wanted: int, timeout_seconds: float) -> list[tuple[Any, Any]]:
        """Wait until so many are over or the time is, and return all that are, each with its outcome or Ray's error."""

    def cancel(self, reference: Any) -> None:
        """End a piece, or take it out of the queue."""

    def progress(self, keys: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """Return the last reports of pieces that are under way; None for one that has not begun."""

    def forget(self, keys: Sequence[str]) -> None:
        """Drop the reports of pieces that were lost."""

    def call_off(self, key: str) -> None:
        """Tell a piece that it may end early."""

    def go_on(self, key: str) -> None:
        """Take that back, once it has ended."""


class RayTasks:
    """Tasks of the Ray that this process is connected to; all that is asked of it goes through its head."""

    def __init__(self, head: Head, staying: StayingWorkers) -> None:
        import ray

        self._head, self._staying = head, staying
        self._task = ray.remote(execute)
        # A worker that has used a GPU is not used again: Ray may give its next piece another one.
        self._gpu_task = ray.remote(max_calls=1)(execute_on_gpu)

    def send(self, order: Order, **options: Any) -> Any:
        """Have a worker run a piece, once; on a GPU one that stays, unless the piece wants a node for itself."""
        piece = order.piece
        name, gpus = f"{piece.stage}: {piece.label}", piece.resources.gpus
        if gpus and "scheduling_strategy" not in options:
            return self._staying.send(order, name, options)
        task = self._gpu_task if gpus else self._task
        reference = self._head.ask(task.options(name=name, max_retries=0, **options).remote, order)
        if gpus or (piece.ranks is not None and piece.ranks[1].gpus):
            self._staying.stand_back(reference)
        return reference

    def completed(self, references: Sequence[Any], wanted: int, timeout_seconds: float) -> list[tuple[Any, Any]]:
        """Wait until so many are over or the time is, and return all that are, each with its outcome or Ray's error."""
        found: list[tuple[Any, Any]] = self._head.ask(_completed, list(references), wanted, timeout_seconds)
        for reference, outcome in found:
            reusable = isinstance(outcome, Outcome) and not outcome.out_of_memory
            self._staying.over(reference, reusable=reusable)
        return found

    def cancel(self, reference: Any) -> None:
        """End a piece with its worker, or take it out of the queue."""
        import ray

        if not self._staying.cancel(reference):
            self._head.ask(ray.cancel, reference, force=True)

    def progress(self, keys: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """Return the last reports in one request: `fraction`, `numbers`, `waits` and the `node` they run on."""
        values = self._head.ask(get_values, keys, PROGRESS_NAMESPACE)
        return [None if value is None else json.loads(value) for value in values]

    def forget(self, keys: Sequence[str]) -> None:
        """Drop the reports of pieces that were lost; others take theirs away themselves."""
        for key in keys:
            self._head.ask(delete_value, key, PROGRESS_NAMESPACE)

    def call_off(self, key: str) -> None:
        """Tell a piece that it may end early."""
        self._head.ask(put_value, key + CALLED_OFF, "1", PROGRESS_NAMESPACE)

    def go_on(self, key: str) -> None:
        """Take that back, once it has ended."""
        self._head.ask(delete_value, key + CALLED_OFF, PROGRESS_NAMESPACE)


def _completed(references: list[Any], wanted: int, timeout_seconds: float) -> list[tuple[Any, Any]]:
    import ray

    found: list[tuple[Any, Any]] = []
    ray.wait(references, num_returns=wanted, timeout=timeout_seconds)
    for reference in ray.wait(references, num_returns=len(references), timeout=0)[0]:
        try:
            found.append((reference, ray.get(reference)))
        except ray.exceptions.RayError as error:
            found.append((reference, error))
    return found
