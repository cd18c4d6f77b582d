"""What is told of a state of ranks that cannot be written, or is none of this version's."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from inlay.distill.checkpoint import TrainingState
from inlay.distill.parallel import Ranks
from inlay.distill.rank_checkpoint import PROGRESS, RankCheckpoint


def kept_in(folder: Path, committed: list[str]) -> RankCheckpoint:
    def last() -> Path | None:
        return folder / committed[-1] if committed else None

    return RankCheckpoint(
        folder, ranks=Ranks(), device=torch.device("cpu"), commit=committed.append, last=last, every_steps=1
    )


def state(done: int, size: int = 4) -> TrainingState:
    return TrainingState({"weight.a": torch.full((size,), float(done))}, {"done": done}, {"best.a": torch.zeros(2)})


def test_a_state_is_committed_once_it_is_written_and_is_what_it_was_when_it_was_due(tmp_path: Path) -> None:
    committed: list[str] = []
    checkpoint = kept_in(tmp_path, committed)
    assert checkpoint.load() is None
    changing = state(1)
    checkpoint.keep(1, False, lambda: changing)
    assert committed == []
    changing.tensors["weight.a"].add_(9.0)
    checkpoint.keep(2, True, lambda: state(2))
    assert committed == ["step_000000001_whole_1", "step_000000002_whole_1"]
    for name, done in zip(list(committed), (1.0, 2.0), strict=True):
        committed.append(name)
        saved = checkpoint.load()
        assert saved is not None
        assert (saved.progress, saved.names) == ({"done": int(done)}, {"weight.a", "best.a"})
        read = {"weight.a": torch.empty(4), "best.a": torch.ones(2)}
        saved.read_into(read)
        assert torch.equal(read["weight.a"], torch.full((4,), done))
        assert torch.equal(read["best.a"], torch.zeros(2))


def test_a_full_disk_is_told_and_commits_nothing(tmp_path: Path) -> None:
    committed: list[str] = []
    checkpoint = kept_in(tmp_path, committed)
    checkpoint.keep(1, True, lambda: state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal, the write fails
    try:
        with pytest.raises(OSError, match=r"step_000000002_whole_1: cannot write 40008 bytes of training state \(.+\)"):
            checkpoint.keep(2, True, lambda: state(2, size=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert committed == ["step_000000001_whole_1"]


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    committed: list[str] = []
    checkpoint = kept_in(tmp_path, committed)
    checkpoint.keep(1, True, lambda: state(1))
    (tmp_path / committed[-1] / PROGRESS).write_text(json.dumps({"schema_version": "7", "progress": {}}))
    with pytest.raises(ValueError, match=r"schema version 7, this version reads 1; remove it to start anew"):
        checkpoint.load()
