"""Models that an engine's process runs in turns; those whose turn it is not are closed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.nas.engines.process import EngineProcess
from inlay.nas.engines.timing import Workload


class ProcessBench:
    """A `Bench` whose worker knows `open`, `close`, `prefill`, `extend` and `steps`.

    Args:
        engine: the process.
        models: what `open` is told of each, by name.
        workload: what a run is.
        device: where it runs: which clock is read.
        vocabulary: tokens that all of them have.
        settings: what `open` is told of each beside the workload, by name.
    """

    def __init__(
        self,
        engine: EngineProcess,
        models: Mapping[str, Any],
        workload: Workload,
        device: str,
        vocabulary: int,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._engine, self._models, self._workload = engine, models, workload
        self._clock, self._settings = workload.clock(device), settings
        chosen = random.Random(0)
        length = workload.prefill + workload.generate
        self._ids = [chosen.randrange(vocabulary) for _ in range(length)]
        self._open: set[str] = set()
        self._running: list[str] = []
        self.told: dict[str, Any] = {}
        """What the worker said of each model when it opened it."""

    def prefill(self, names: Sequence[str]) -> list[int]:
        if idle := sorted(self._open - set(names)):
            self._engine.ask("close", models=idle)
        for name in names:
            if name not in self._open:
                self._load(name)
        self._open, self._running = set(names), list(names)
        return self._times("prefill", ids=self._ids[: self._workload.prefill])

    def opened(self, name: str) -> Any:
        """What the worker says of a model, which is closed again."""
        self._load(name)
        self._engine.ask("close", models=[name])
        return self.told[name]

    def _load(self, name: str) -> None:
        """One at a time: an engine that compiles its models takes long for all of them."""
        self.told |= self._engine.ask(
            "open",
            models={name: self._models[name]},
            tokens=len(self._ids),
            sequences=self._workload.batch_size,
            threads=self._workload.threads,
            **self._settings[name],
        )

    def extend(self, context: int) -> None:
        self._engine.ask("extend", models=self._running, ids=self._ids[:context])

    def steps(self, count: int) -> list[int]:
        return self._times("steps", count=count)

    def _times(self, do: str, **values: Any) -> list[int]:
        return list(self._engine.ask(do, models=self._running, clock=self._clock, **values)["ns"])


def scratch_folder(engine: str, scratch: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A folder for what an engine opens, there until its context ends; in `scratch`, or where the system has such."""
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f"inlay-{engine}-", dir=scratch)
