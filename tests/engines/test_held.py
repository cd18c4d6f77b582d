"""What llama.cpp says that it holds: buffers that a search may limit, and bytes that were predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.engines.engine import Target
from inlay.nas.engines.llama_cpp import LlamaCppEngine
from inlay.nas.engines.timing import Workload
from inlay.nas.families import open_parent
from inlay.nas.stages.sizes import parent_file_bytes

ENGINE, TARGET = LlamaCppEngine(), Target("cpu", "float32", "f16")
WORKLOAD = Workload(batch_size=1, prefill=8, generate=4, threads=1)


@pytest.fixture(scope="module")
def parent(tiny_parent: Callable[..., Path]) -> Any:
    return open_parent(tiny_parent("llama", hidden_size=128, intermediate_size=512, vocab_size=4096))


def test_files_without_numbers_tell_the_same_as_those_that_are_timed(parent: Any, tmp_path: Path) -> None:
    config = parent.config
    narrow = config.with_blocks([{**block, "ffn": {"kind": "gated", "width": 64}} for block in config.blocks])
    models = {"parent": config, "narrow": narrow}
    timed = ENGINE.rounds(models, WORKLOAD, TARGET, lambda share: None, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == [], "files go with the process"
    for name, model in models.items():
        held = timed.held[name]
        assert held.compute_bytes == ENGINE.buffers({name: model}, WORKLOAD, TARGET, tmp_path) > 0
        assert held.file_bytes == ENGINE.file_bytes(model, "f16", None)
        assert held.weights_bytes == ENGINE.storage("f16", "cpu").model(parent.shape, model.blocks)
    assert ENGINE.buffers(models, WORKLOAD, TARGET) == max(held.compute_bytes for held in timed.held.values())
    longer = Workload(batch_size=4, prefill=400, generate=4, threads=1)
    assert ENGINE.buffers({"parent": config}, longer, TARGET) > timed.held["parent"].compute_bytes


def test_a_file_has_the_tokenizer_too(tmp_path: Path) -> None:
    from inlay.nas.embedded import embedded_parent

    parent = open_parent(embedded_parent("pystdlib"))
    whole, bare = (ENGINE.file_bytes(parent.config, "f16", folder) for folder in (parent.folder, None))
    assert whole > bare > ENGINE.storage("f16", "cpu").model(parent.shape, parent.shape.blocks)
    assert parent_file_bytes(parent.folder) > 0
