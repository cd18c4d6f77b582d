"""llama.cpp in a process of its own: loads files, and times or runs them as it is told, a line of JSON at a time.

It is started by its path, by any interpreter that has a binding of llama.cpp, and imports nothing of inlay's: a bad
file may abort the process, and bindings pin what they need. `answering.py` beside it says how it is asked,
`llama_bindings.py` what it asks in turn.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.nas.engines.workers.answering import InTurns, Missing, Refused, answer_requests
    from inlay.nas.engines.workers.llama_bindings import BINDINGS
else:
    from answering import InTurns, Missing, Refused, answer_requests
    from llama_bindings import BINDINGS

ERROR = 4
"""ggml's level of what went wrong."""


class Model:
    """A file that is loaded, with a context and one generation under way."""

    def __init__(self, worker: Worker, path: str, request: dict[str, Any]) -> None:
        self._worker, self._binding = worker, worker.binding
        self.sequences = request["sequences"]
        self._model = worker.load(path)
        try:
            self._context = self._binding.context(
                self._model, request["tokens"], self.sequences, request["threads"],
                request.get("exact", False), request.get("kv_type"),
            )  # fmt: skip
        except (ValueError, RuntimeError):
            raise Refused(f"no context for {path}: {worker.last()}") from None
        self._sampler = self._binding.sampler()
        self.sizes = {
            "weights_bytes": self._model.size,
            "cells": self._context.n_ctx,
            "kv_mib": worker.logged(r"KV buffer size = +([0-9.]+) MiB"),
            "compute_mib": worker.logged(r"compute buffer size = +([0-9.]+) MiB"),
        }
        self.tokens = [0] * self.sequences
        self.seen = 0

    def close(self) -> None:
        """Gives its memory back."""
        self._context.close()
        self._model.close()

    @property
    def token(self) -> int:
        """The one that the first sequence chose last."""
        return self.tokens[0]

    def read(self, ids: Sequence[int], clock: Callable[[], int]) -> int:
        """Reads the same ids in every sequence from its beginning; nanoseconds taken."""
        self._restart()
        return self._read_on(ids, clock)

    def extend(self, ids: Sequence[int]) -> None:
        """Reads on up to the end of the ids."""
        if more := ids[self.seen :]:
            self._read_on(more, time.perf_counter_ns)

    def _restart(self) -> None:
        self._context.kv_cache_clear(True)
        self.seen = 0

    def _read_on(self, ids: Sequence[int], clock: Callable[[], int]) -> int:
        """Reads the same further ids in every sequence and keeps the greedy next tokens."""
        last = len(ids) - 1
        rows = [(ids[i], self.seen + i, s, i == last) for s in range(self.sequences) for i in range(len(ids))]
        size = self._context.n_batch
        spent = 0
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = self._binding.batch(part)
            wanted = [(place, row[2]) for place, row in enumerate(part) if row[3]]
            begun = clock()
            self._decode(batch)
            for place, sequence in wanted:
                self.tokens[sequence] = self._sampler.sample(self._context, place)
            spent += clock() - begun
            batch.close()
        self.seen += len(ids)
        return spent

    def step(self, clock: Callable[[], int]) -> int:
        """One token further in every sequence; nanoseconds taken."""
        begun = clock()
        batch = self._binding.batch([(token, self.seen, s, True) for s, token in enumerate(self.tokens)])
        self._decode(batch)
        self.tokens = [self._sampler.sample(self._context, s) for s in range(self.sequences)]
        spent = clock() - begun
        batch.close()
        self.seen += 1
        return spent

    def logits(self, ids: Sequence[int]) -> Any:
        """[tokens, vocabulary] of one sequence from its beginning, float32."""
        import numpy

        self._restart()
        size = self._context.n_batch
        found = []
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            batch = self._binding.batch([(token, start + i, 0, True) for i, token in enumerate(part)])
            self._decode(batch)
            found += [numpy.asarray(self._context.get_logits_ith(i), numpy.float32) for i in range(len(part))]
            batch.close()
        return numpy.stack(found)

    def _decode(self, batch: Any) -> None:
        try:
            self._context.decode(batch)
        except (ValueError, RuntimeError) as error:
            raise Refused(f"it does not decode ({error}): {self._worker.last()}") from None
        self._context.synchronize()


class Worker(InTurns):
    """Does what requests say."""

    def __init__(self) -> None:
        self._said: list[tuple[int, str]] = []
        super().__init__()
        self.binding = self._binding()

    def _binding(self) -> Any:
        absent = []
        for binding in BINDINGS:
            try:
                return binding(lambda level, text: self._said.append((level, text)))
            except ImportError as error:
                absent.append(str(error))
        raise Missing(f"{sys.executable} has no binding of llama.cpp ({'; '.join(absent)})")

    def load(self, path: str) -> Any:
        """The model in a file."""
        del self._said[:]
        try:
            return self.binding.model(path)
        except (ValueError, RuntimeError):
            raise Refused(f"it does not load {path}: {self.last()}") from None

    def last(self) -> str:
        """The first error in its log."""
        errors = [text.strip() for level, text in self._said if level == ERROR and text.strip()]
        return errors[0][:300] if errors else "it does not say why"

    def logged(self, pattern: str) -> float:
        """The sum of the numbers that its log says."""
        return sum(float(number) for _, text in self._said for number in re.findall(pattern, text))

    def do_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """What it is."""
        return {"binding": self.binding.version}

    def do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Loads files for contexts of so many `tokens` in each of the `sequences`; their sizes by name."""
        for name, path in request["models"].items():
            self.running[name] = Model(self, path, request)
        return {name: self.running[name].sizes for name in request["models"]}

    def do_quantise(self, request: dict[str, Any]) -> dict[str, Any]:
        """Rewrites a file in one of llama.cpp's own file types."""
        try:
            self.binding.quantise(request["source"], request["output"], request["file_type"])
        except (ValueError, RuntimeError) as error:
            raise Refused(f"it does not quantise {request['source']} ({error}): {self.last()}") from None
        return {}

    def do_close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets models go."""
        for name in request["models"]:
            self.running.pop(name).close()
        return {}

    def do_logits(self, request: dict[str, Any]) -> dict[str, Any]:
        """Writes the logits of a sequence as `.npy`."""
        import numpy

        numpy.save(request["output"], self.running[request["model"]].logits(request["ids"]))
        return {}


if __name__ == "__main__":
    answer_requests(Worker)
