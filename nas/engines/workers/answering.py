"""What the engines' workers share: requests line by line on standard input, answers on standard output.

A request is `{"do": NAME, ...}`; the answer is `{"ok": {...}}` or `{"error": TEXT, "missing": BOOL}`. A worker is
started by its path, so that this file lies beside it on its path whatever interpreter runs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


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
