"""The state of a training run in safetensors files: one, replaced atomically, or one a rank with its own rows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SCHEMA_VERSION = "1"


@dataclass(frozen=True)
class TrainingState:
    """Everything that training needs to go on bit for bit."""

    tensors: Mapping[str, Tensor]
    """By name; weights, moments, step counts."""
    progress: dict[str, Any]
    """JSON values: steps done, losses so far, rate."""


@dataclass
class Checkpoint:
    """Where and how often a training run keeps its state."""

    folder: Path
    """Made when the first state is saved."""
    every_steps: int | None = None
    """Save after every so many steps; None for no such rule."""
    every_seconds: float | None = 60.0
    """Save when so much time has passed since the last one; None for no such rule."""
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    @property
    def path(self) -> Path:
        return Path(self.folder) / "training.safetensors"

    def due(self, step: int) -> bool:
        """Whether a state should be saved after `step` steps."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, state: TrainingState) -> None:
        """Writes the state beside the last one and puts it in its place; raises OSError as `write_state` does."""
        write_state(self.path, state)
        self._saved_at = time.monotonic()

    def load(self) -> TrainingState | None:
        """The state last saved, on the CPU, or None; raises ValueError as `read_state` does."""
        return read_state([self.path]) if self.path.exists() else None


def write_state(path: Path, state: TrainingState) -> None:
    """Writes a state, or a rank's rows of it, as one file: whole or not at all.

    Raises:
        OSError: it cannot be written, with path and bytes; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    metadata = {"schema_version": SCHEMA_VERSION, "progress": json.dumps(state.progress)}
    size = sum(tensor.nbytes for tensor in state.tensors.values())
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, beside, metadata)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            f"{path}: cannot write {size} bytes of training state ({error}); the one saved before is kept"
        ) from None


def read_state(paths: Sequence[Path]) -> TrainingState:
    """The state in these files, the first rank's first; a tensor is read, and its rows are joined, when asked for.

    Raises:
        ValueError: a file is damaged or of another schema version.
    """
    files: list[Any] = []
    for path in paths:
        try:
            file: Any = safe_open(path, framework="pt")
            metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged checkpoint ({error}); remove it to start anew") from None
        if metadata.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path}: schema version {metadata.get('schema_version')}, this version reads {SCHEMA_VERSION}; "
                "remove it to start anew"
            )
        files.append(file)
    return TrainingState(_Joined(files), json.loads((files[0].metadata() or {})["progress"]))


class _Joined(Mapping[str, Tensor]):
    """The tensors of several files: what only the first has is whole, of the others each file has the next rows."""

    def __init__(self, files: Sequence[Any]) -> None:
        self._files = files
        self._names = [set(file.keys()) for file in files]

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file, names in zip(self._files, self._names, strict=True) if name in names]
        if not parts:
            raise KeyError(name)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def __contains__(self, name: object) -> bool:
        return name in self._names[0]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names[0]))

    def __len__(self) -> int:
        return len(self._names[0])
