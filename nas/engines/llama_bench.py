"""Files of llama.cpp that are timed and asked for their sizes: how they are written, and the process that runs them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.engines.engine import Held, Target
from inlay.nas.engines.gguf.packing import Packed, pack
from inlay.nas.engines.process import EngineProcess
from inlay.nas.engines.timing import Workload
from inlay.nas.families.shape import Shape

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig

MIB: Final = 2**20


class LlamaBench:
    """Files that one process runs in turns; those whose turn it is not are closed."""

    def __init__(
        self, engine: EngineProcess, files: Mapping[str, str], workload: Workload, target: Target, vocabulary: int
    ) -> None:
        self._engine, self._files, self._workload = engine, files, workload
        self._clock = workload.clock(target.device)
        chosen = random.Random(0)
        length = workload.prefill + workload.generate
        self._ids = [chosen.randrange(vocabulary) for _ in range(length)]
        self._open: set[str] = set()
        self._running: list[str] = []
        self.held: dict[str, Held] = {}

    def prefill(self, names: Sequence[str]) -> list[int]:
        if idle := sorted(self._open - set(names)):
            self._close(idle)
        self._load([name for name in names if name not in self._open])
        self._open, self._running = set(names), list(names)
        return self._times("prefill", ids=self._ids[: self._workload.prefill])

    def opened(self, name: str) -> Held:
        """What is held for a model, which is closed again."""
        self._load([name])
        self._close([name])
        return self.held[name]

    def _load(self, names: Sequence[str]) -> None:
        if not names:
            return
        told = self._engine.ask(
            "open",
            models={name: self._files[name] for name in names},
            tokens=len(self._ids),
            sequences=self._workload.batch_size,
            threads=self._workload.threads,
        )
        for name, sizes in told.items():
            kv, compute = (round(sizes[part] * MIB) for part in ("kv_mib", "compute_mib"))
            self.held[name] = Held(sizes["weights_bytes"], kv, compute, Path(self._files[name]).stat().st_size)

    def _close(self, names: Sequence[str]) -> None:
        self._engine.ask("close", models=names)

    def extend(self, context: int) -> None:
        self._engine.ask("extend", models=self._running, ids=self._ids[:context])

    def steps(self, count: int) -> list[int]:
        return self._times("steps", count=count)

    def _times(self, do: str, **values: Any) -> list[int]:
        return list(self._engine.ask(do, models=self._running, clock=self._clock, **values)["ns"])


def packed_of(config: InlayConfig, form: str) -> Packed:
    """A model of this configuration as a file holds it."""
    return pack(shape_of_config(config), config.blocks, form)


def shape_of_config(config: InlayConfig) -> Shape:
    """Its sizes."""
    from inlay.nas.families.reading import shape_of

    return shape_of(config.to_dict(), "float32")


def scratch_folder(scratch: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A folder for files, there until its context ends."""
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="inlay-gguf-", dir=scratch)


def write_shape(path: Path, config: InlayConfig, form: str, hollow: bool = False) -> None:
    """Writes a file of this shape, with random numbers or, `hollow`, without any."""
    from inlay.nas.engines.gguf.fields import NO_TOKENIZER
    from inlay.nas.engines.gguf.metadata import described
    from inlay.nas.engines.gguf.writer import write_hollow, write_skeleton

    packed = packed_of(config, form)
    rotation, fields = described(packed, config, form, "skeleton")
    write = write_hollow if hollow else write_skeleton
    write(path, packed, rotation, [*fields, NO_TOKENIZER])
