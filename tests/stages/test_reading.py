"""A worker reads of a parent's layer what it asked for, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inlay.cluster.store import Store
from inlay.nas.families import open_parent
from inlay.nas.pieces.weights import Library, WorkerSource

IO = Path("/proc/self/io")


def bytes_read() -> int:
    (line,) = (line for line in IO.read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@pytest.mark.skipif(not IO.exists(), reason="tells how much a process read: Linux")
def test_both_slots_of_a_layer_are_one_layer(tiny_parent: Callable[..., Path], tmp_path: Path) -> None:
    parent = open_parent(tiny_parent("llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=2))
    source = WorkerSource(parent, Library({}), Store(tmp_path), torch.float32, torch.device("cpu"))
    size = sum(tensor.nbytes for tensor in parent.layer_state(1).values())
    assert parent.config.num_hidden_layers == 2  # what is imported once is not counted
    source.subblock(0, "ffn", "ffn:parent")
    before = bytes_read()
    attention, ffn = source.subblock(1, "attention", "attention:parent"), source.subblock(1, "ffn", "ffn:parent")
    read = bytes_read() - before
    assert attention is not None
    assert ffn is not None
    assert size <= read < 1.1 * size
