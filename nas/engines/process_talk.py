"""Texts from an engine's process: what the engine reads is written once, and the process continues texts in turns."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from inlay.nas.engines.process import EngineProcess
from inlay.nas.engines.talk import Continuation, Talk

LEAST_ROOM: Final = 512
"""Tokens that caches are made for at first."""
STRETCH: Final = 16
"""Tokens of each model that one request asks for: no request lasts long."""


def written_once(path: Path, write: Callable[[Path], None]) -> Path:
    """A file or folder that is there, or is written now; whole or not at all."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)
    return path


class ProcessTalk(Talk):
    """Models that a process holds whose worker knows `open`, `close`, `prefill` and `generate`.

    Args:
        engine: the process.
        models: what `open` is told of each, by name.
        threads: CPU threads.
        clock: `thread` or `wall`: what times are read from.
        settings: what `open` is told of each beside, by name.
    """

    def __init__(
        self,
        engine: EngineProcess,
        models: Mapping[str, Any],
        threads: int,
        clock: str,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._engine, self._models, self._threads, self._clock = engine, models, threads, clock
        self._settings, self._names = settings, list(models)
        self._room = 0

    def continuations(self, ids: Sequence[int], most: int, stops: Collection[int]) -> dict[str, Continuation]:
        self._make_room(len(ids) + most)
        prefill_ns = self._prefill(ids)
        found: dict[str, list[int]] = {name: [] for name in self._names}
        decode_ns = dict.fromkeys(self._names, 0)
        going = self._names
        for start in range(0, most, STRETCH):
            count = min(STRETCH, most - start)
            answer = self._engine.ask("generate", models=going, count=count, stops=list(stops), clock=self._clock)
            for name, own, spent in zip(going, answer["ids"], answer["ns"], strict=True):
                found[name] += own
                decode_ns[name] += spent
            going = [name for name, stopped in zip(going, answer["stopped"], strict=True) if not stopped]
            if not going:
                break
        return {
            name: Continuation(tuple(own), name not in going, prefill_ns[name], decode_ns[name])
            for name, own in found.items()
        }

    def _prefill(self, ids: Sequence[int]) -> dict[str, int]:
        answer = self._engine.ask("prefill", models=self._names, ids=list(ids), clock=self._clock)
        return dict(zip(self._names, answer["ns"], strict=True))

    def _make_room(self, tokens: int) -> None:
        """Opens the models, anew where their caches are too small."""
        if tokens <= self._room:
            return
        if self._room:
            self._engine.ask("close", models=self._names)
        self._room = max(tokens, 2 * self._room, LEAST_ROOM)
        for name, told in self._models.items():
            self._engine.ask(
                "open",
                models={name: told},
                tokens=self._room,
                sequences=1,
                threads=self._threads,
                **self._settings[name],
            )
        self._prefill([0])  # what is done once, such as reading a file, is not counted to the first text
