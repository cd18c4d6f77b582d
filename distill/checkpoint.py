"""The state of a training run, kept so that it can go on: when it is saved, and the one file of a single process.

How several processes save theirs is in `rank_checkpoint.py`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SCHEMA_VERSION = "1"
COST_SHARE: Final = 0.02
"""Of the time of a training, what saving its state may take."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that training needs to go on bit for bit."""

    tensors: Mapping[str, Tensor]
    """By name; weights, moments, step counts. Training changes them as it goes on."""
    progress: dict[str, Any]
    """JSON values: steps done, losses so far, rate."""
    settled: Mapping[str, Tensor] = field(default_factory=dict)
    """By other names; on the host, and never changed once they are here."""

    @property
    def num_bytes(self) -> int:
        """Of what this process has of the tensors."""
        return sum(tensor.nbytes for part in (self.tensors, self.settled) for tensor in part.values())


@dataclass(frozen=True)
class SavedState:
    """A state that was saved."""

    names: frozenset[str]
    """Of its tensors."""
    progress: dict[str, Any]
    """As it was saved."""
    read_into: Callable[[Mapping[str, Tensor]], None]
    """Fills tensors of these names with what was saved; of one that is sharded a process gets its rows."""


@dataclass
class Checkpoint:
    """Where and how often a training run keeps its state."""

    folder: Path
    """Made when the first state is saved."""
    every_steps: int | None = None
    """Save after every so many steps; None for no such rule."""
    every_seconds: float | None = 15.0
    """Save when so much time has passed since the last one, or more, so that saving takes no more than `COST_SHARE` of
    all; None for no such rule."""
    _saved_at: float = field(default_factory=time.monotonic, init=False)
    _cost_seconds: float = field(default=0.0, init=False)
    """What the last one took of the training's time."""

    @property
    def path(self) -> Path:
        return Path(self.folder) / "training.safetensors"

    def keep(self, step: int, ended: bool, state: Callable[[], TrainingState]) -> None:
        """Called after every step: saves the state if that is due, and in any case where training has `ended`."""
        if ended or self.due(step):
            begun = time.monotonic()
            self.save(state())
            self._has_taken(begun)

    def due(self, step: int) -> bool:
        """Whether a state should be saved after `step` steps."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        if self.every_seconds is None:
            return False
        return time.monotonic() - self._saved_at >= max(self.every_seconds, self._cost_seconds / COST_SHARE)

    def save(self, state: TrainingState) -> None:
        """Writes the state beside the last one and puts it in its place; raises OSError as `write_state` does."""
        write_state(self.path, state)

    def load(self) -> SavedState | None:
        """The state last saved, or None; raises ValueError as `read_state` does."""
        return read_state(self.path) if self.path.exists() else None

    def _has_taken(self, begun: float) -> None:
        self._saved_at = time.monotonic()
        self._cost_seconds = self._saved_at - begun


def write_state(path: Path, state: TrainingState) -> None:
    """Writes a state as one file: whole or not at all.

    Raises:
        OSError: it cannot be written, with path and bytes; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    metadata = {"schema_version": SCHEMA_VERSION, "progress": json.dumps(state.progress)}
    try:
        tensors = {**state.tensors, **state.settled}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise not_written(path, state, error) from None


def not_written(path: Path, state: TrainingState, error: BaseException) -> OSError:
    """What is told of a state that could not be written."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return OSError(
        f"{path}: cannot write {state.num_bytes} bytes of training state ({lines[-1] if lines else error!r}); the one "
        "saved before is kept"
    )


def read_state(path: Path) -> SavedState:
    """The state in this file.

    Raises:
        ValueError: it is damaged or of another schema version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, frozenset(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged checkpoint ({error}); remove it to start anew") from None
    check_schema(path, metadata.get("schema_version"))

    def read_into(tensors: Mapping[str, Tensor]) -> None:
        with safe_open(path, framework="pt") as saved, torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(saved.get_tensor(name))

    return SavedState(names, json.loads(metadata["progress"]), read_into)


def check_schema(path: Path, version: object) -> None:
    """Raises ValueError for a state of another schema version."""
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {version}, this version reads {SCHEMA_VERSION}; remove it to start anew"
        )
