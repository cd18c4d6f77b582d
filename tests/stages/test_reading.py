"""A worker reads of a parent's layer what it asked for, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inlay.cluster.store import Store
from inlay.nas.families import open_parent
from inlay.nas.families.checkpoint import StoredTensor
from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.estimate import expected_stages
from inlay.nas.stages.machines import ThisCpu
from inlay.nas.stages.score import score_blocks

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


def test_the_plan_knows_how_much_pieces_read(
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    make_search: Callable[[Job, Path], SmallSearch],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    parent = tiny_parent("llama", num_hidden_layers=4)
    values = {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 64},
            "validate": {"path": str(texts[1]), "tokens": 4096},
        },
        "space": {"attention": [{"kv_heads": 1}, "no_op"], "ffn": [{"width": 0.25}, "no_op"]},
        "distill": {"tokens": 2048, "batch_size": 8},
        "score": {"pairs": 0},
        "budget": {"parameters": "0.9x"},
    }
    job = Job.from_dict(values)
    search = make_search(job, tmp_path / "w")
    packed = store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    planned = expected_stages(job, search.parent, ThisCpu(search.parent))
    assert min(len(packed.distill.shards), len(packed.score.shards)) > 1, "each is carried by itself"
    read: list[int] = []
    whole = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda tensor: (read.append(tensor.num_bytes), whole(tensor))[1])
    library = library_of(build_library(search, packed.distill))
    assert sum(read) == planned["distill"].read_bytes
    read.clear()
    score_blocks(search, packed.score, library)
    assert sum(read) == planned["score"].read_bytes
