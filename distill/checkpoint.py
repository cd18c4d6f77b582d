"""The state of a training run as one safetensors file that is replaced atomically."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SCHEMA_VERSION = "1"


@dataclass(frozen=True)
class TrainingState:
    """Everything that training needs to go on bit for bit."""

    tensors: dict[str, Tensor]
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
        """Writes the state beside the last one and puts it in its place.

        Raises:
            OSError: it cannot be written, with path and bytes; what was there before stays.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        metadata = {"schema_version": SCHEMA_VERSION, "progress": json.dumps(state.progress)}
        size = sum(tensor.nbytes for tensor in state.tensors.values())
        try:
            save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, beside, metadata)
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(self.path)
        except (OSError, SafetensorError) as error:
            beside.unlink(missing_ok=True)
            raise OSError(
                f"{self.path}: cannot write {size} bytes of training state ({error}); the one saved before is kept"
            ) from None
        self._saved_at = time.monotonic()

    def load(self) -> TrainingState | None:
        """The state last saved, on the CPU, or None.

        Raises:
            ValueError: the file is damaged or of another schema version.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{self.path}: damaged checkpoint ({error}); remove it to start anew") from None
        if metadata.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{self.path}: schema version {metadata.get('schema_version')}, this version reads {SCHEMA_VERSION}; "
                "remove it to start anew"
            )
        return TrainingState(tensors, json.loads(metadata["progress"]))
