"""The state of a training on several processes, by PyTorch's distributed checkpoint: each writes its rows while the
training goes on, and any number of processes reads them.

Files are safetensors, whose headers say which rows they hold, and one of JSON: nothing that is read from storage is
pickled, which rules PyTorch's own file format out. A process copies its rows to the host, and a thread writes the copy.
What they must tell each other meanwhile goes through a gloo group of its own, beside the training's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from inlay.distill.checkpoint import (
    SCHEMA_VERSION,
    Checkpoint,
    SavedState,
    TrainingState,
    check_schema,
    not_written,
)
from inlay.distill.parallel import Ranks, host_group, on_host
from inlay.distill.tensor_files import cut

PROGRESS: Final = "progress.json"
FILE_BYTES: Final = 1 << 30
"""In one file of a process: what is held once more while it is written."""


@dataclass
class _Writing:
    """A state that is being written."""

    name: str
    state: TrainingState
    future: Future[Any]


@dataclass(kw_only=True)
class RankCheckpoint(Checkpoint):
    """The same for several processes, which all call it alike; one state is written at a time."""

    ranks: Ranks
    device: torch.device
    """Where the training's group works."""
    commit: Callable[[str], None]
    """Makes the folder of this name, in which every process has its files, the one to go on from, and drops the last
    one; called by all."""
    last: Callable[[], Path | None]
    """The folder to go on from."""
    _writing: _Writing | None = field(default=None, init=False)

    def keep(self, step: int, ended: bool, state: Callable[[], TrainingState]) -> None:
        """As of one process; that a state is written is noticed, and committed, after a later step.

        Raises:
            OSError: one cannot be written.
        """
        due = ended or self.ranks.agree(self.due(step), self.device)
        if self._writing is not None and (due or self._is_written(self._writing)):
            self._finish(self._writing)
        if due:
            begun = time.monotonic()
            self._writing = self._begin(state())
            self._has_taken(begun)
        if self._writing is not None and ended:
            self._finish(self._writing)

    def load(self) -> SavedState | None:
        """The state that was committed last, by any number of processes, or None.

        Raises:
            ValueError: it is damaged or of another schema version.
        """
        folder = self.last()
        if folder is None:
            return None
        told = json.loads((folder / PROGRESS).read_text())
        check_schema(folder, told["schema_version"])
        names = frozenset(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)

        def read_into(tensors: Mapping[str, Tensor]) -> None:
            reader = HuggingFaceStorageReader(str(folder))
            load(dict(tensors), storage_reader=reader, **_among())

        return SavedState(names, told["progress"], read_into)

    def wait(self) -> None:
        """Until nothing is written any more; what was written stays uncommitted."""
        if self._writing is not None:
            self._writing.future.exception()

    def _begin(self, state: TrainingState) -> _Writing:
        # Other processes, or another layout, never write into a folder that these left half done.
        layout = "shards" if self.ranks.sharded else "whole"
        name = f"step_{state.progress['done']:09d}_{layout}_{self.ranks.count}"
        folder = Path(self.folder) / name
        folder.mkdir(parents=True, exist_ok=True)
        if self.ranks.index == 0:
            told = {"schema_version": SCHEMA_VERSION, "progress": state.progress}
            (folder / PROGRESS).write_text(json.dumps(told))
        tensors = {**state.tensors, **state.settled}
        sizes = {each: own.nbytes // self.ranks.count for each, own in tensors.items()}
        files = {each: number for number, part in enumerate(cut(sizes, FILE_BYTES), 1) for each in part}
        future = async_save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(folder), files, save_distributed=True),
            **_among(),
            async_stager=_Copies(frozenset(state.settled)),
        )
        assert isinstance(future, Future)  # of a stager that is done at once
        return _Writing(name, state, future)

    def _is_written(self, writing: _Writing) -> bool:
        """Whether every process has written its part; the same answer in all."""
        (done,) = self.ranks.add([float(writing.future.done())], self.device)
        return done == self.ranks.count

    def _finish(self, writing: _Writing) -> None:
        begun = time.monotonic()
        if (error := writing.future.exception()) is not None:
            raise not_written(Path(self.folder) / writing.name, writing.state, error) from None
        self._writing = None
        self.commit(writing.name)
        self._cost_seconds += time.monotonic() - begun


def _among() -> dict[str, Any]:
    """Who saves and reads: the processes of the training's group, or this one where it has none."""
    return {"process_group": host_group()} if dist.is_initialized() else {"no_dist": True}


class _Copies(AsyncStager):
    """Copies to the host what training goes on to change, and nothing else."""

    def __init__(self, settled: frozenset[str]) -> None:
        self._settled = settled

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {name: own if name in self._settled else on_host(own) for name, own in state_dict.items()}

    @property
    def should_synchronize_after_execute(self) -> bool:
        return False

    def synchronize_staging(self) -> None:
        """It is done when it returns."""

    def close(self) -> None:
        """It holds nothing."""
