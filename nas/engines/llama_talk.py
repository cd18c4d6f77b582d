"""Texts from llama.cpp: GGUF files that are written once, and the process that continues texts with them in turns."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from inlay.nas.engines.gguf.packing import Packed
from inlay.nas.engines.gguf.trained import write_trained
from inlay.nas.engines.process import EngineProcess
from inlay.nas.engines.talk import Continuation, Talk, Trained
from inlay.version import __version__

LEAST_ROOM: Final = 512
"""Tokens that caches are made for at first."""
STRETCH: Final = 16
"""Tokens of each model that one request asks for: no request lasts long."""


def kept_file(folder: Path, model: Trained, packed: Packed, form: str) -> Path:
    """The model's file in a folder, written there unless it is; whole or not at all.

    Raises:
        UserError: the tokenizer cannot be rebuilt, or the extra `gguf` is not installed.
    """
    path = folder / f"{model.key}-{form}-{__version__}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{uuid.uuid4().hex}.part"
    try:
        write_trained(beside, packed, model.config, model.folder, model.tensors.__getitem__)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


class LlamaTalk(Talk):
    """Files that one process of llama.cpp holds.

    Args:
        engine: the process.
        files: by model.
        threads: CPU threads.
        clock: `thread` or `wall`: what times are read from.
    """

    def __init__(self, engine: EngineProcess, files: Mapping[str, Path], threads: int, clock: str) -> None:
        self._engine, self._files, self._threads, self._clock = engine, files, threads, clock
        self._room = 0

    def continuations(self, ids: Sequence[int], most: int, stops: Collection[int]) -> dict[str, Continuation]:
        self._make_room(len(ids) + most)
        prefill_ns = self._prefill(ids)
        found: dict[str, list[int]] = {name: [] for name in self._files}
        decode_ns = dict.fromkeys(self._files, 0)
        going = list(self._files)
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
        answer = self._engine.ask("prefill", models=list(self._files), ids=list(ids), clock=self._clock)
        return dict(zip(self._files, answer["ns"], strict=True))

    def _make_room(self, tokens: int) -> None:
        """Opens the files, anew where their caches are too small."""
        if tokens <= self._room:
            return
        if self._room:
            self._engine.ask("close", models=list(self._files))
        self._room = max(tokens, 2 * self._room, LEAST_ROOM)
        files = {name: str(path) for name, path in self._files.items()}
        self._engine.ask("open", models=files, tokens=self._room, sequences=1, threads=self._threads)
        self._prefill([0])  # what is done once, such as reading the file, is not counted to the first text
