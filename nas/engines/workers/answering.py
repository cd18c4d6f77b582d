"""What the engines' workers share: requests line by line on standard input, answers on standard output.

A request is `{"do": NAME, ...}`; the answer is `{"ok": {...}}` or `{"error": TEXT, "missing": BOOL}`. A worker is
started by its path, so that this file lies beside it on its path whatever interpreter runs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Refused(Exception):
    """What is told instead of an answer."""


class Missing(Refused):
    """The interpreter has no such engine."""


def clock_of(name: str) -> Callable[[], int]:
    """`thread`: the time that this thread computed; else what the wall's clock says."""
    return time.thread_time_ns if name == "thread" else time.perf_counter_ns


def answer_requests(make: Callable[[], Any]) -> None:
    """Answers by the methods `do_NAME` of what `make` gives, until the input ends.

    Args:
        make: called at the first request; may raise Missing.
    """
    # Answers have this descriptor to themselves: libraries print to standard output as they like.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or make()
            answer = {"ok": getattr(worker, f"do_{request['do']}")(request)}
        except Refused as error:
            answer = {"error": str(error), "missing": isinstance(error, Missing)}
        print(json.dumps(answer), file=answers, flush=True)


class Running(Protocol):
    """A model with one generation under way."""

    @property
    def token(self) -> int:
        """The one that the first sequence chose last."""

    def read(self, ids: Sequence[int], clock: Callable[[], int]) -> int:
        """Reads a prompt anew, up to the first new token of each sequence; nanoseconds taken."""

    def extend(self, ids: Sequence[int]) -> None:
        """Reads on up to the end of the ids, where it has not come so far."""

    def step(self, clock: Callable[[], int]) -> int:
        """One token further in every sequence; nanoseconds taken."""


class InTurns:
    """Requests about models that take turns."""

    def __init__(self) -> None:
        self.running: dict[str, Any] = {}

    def do_prefill(self, request: dict[str, Any]) -> dict[str, Any]:
        """Nanoseconds that each model takes for the prompt."""
        clock = clock_of(request["clock"])
        return {"ns": [model.read(request["ids"], clock) for model in self._named(request)]}

    def do_extend(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets each model read on up to the end of the ids."""
        for model in self._named(request):
            model.extend(request["ids"])
        return {}

    def do_steps(self, request: dict[str, Any]) -> dict[str, Any]:
        """Nanoseconds that each model takes for so many tokens; turns change at every one."""
        clock = clock_of(request["clock"])
        models = self._named(request)
        spent = [0] * len(models)
        for _ in range(request["count"]):
            for number, model in enumerate(models):
                spent[number] += model.step(clock)
        return {"ns": spent}

    def do_generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Goes on from what was read, greedily: up to `count` tokens of each model, until one of `stops`.

        In the order of the models: `ids`, whether a stop is next, and the nanoseconds of one step for each of the ids.
        """
        clock = clock_of(request["clock"])
        stops = set(request["stops"])
        models = self._named(request)
        found: list[list[int]] = [[] for _ in models]
        spent = [0] * len(models)
        for _ in range(request["count"]):
            for number, model in enumerate(models):
                if model.token not in stops:
                    found[number].append(model.token)
                    spent[number] += model.step(clock)
        return {"ids": found, "stopped": [model.token in stops for model in models], "ns": spent}

    def _named(self, request: dict[str, Any]) -> list[Running]:
        return [self.running[name] for name in request["models"]]
