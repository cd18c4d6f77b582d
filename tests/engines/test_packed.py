"""2:4 in the transformers engine: what is timed and what is talked to stays packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.nas.engines.eager import random_model
from inlay.nas.engines.engine import Target
from inlay.nas.engines.registry import ENGINES
from inlay.nas.engines.talk import Trained
from inlay.nas.families import layer_prefix, open_parent
from inlay.nas.formats.sparse import SPARSE, TWO_OF_FOUR
from inlay.nas.formats.tensors import rounded
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.sparse_inlay import SparseLinear
from inlay.nas.modeling.subblock_inlay import FORMAT

ENGINE = ENGINES["transformers"]


@pytest.fixture
def parent(tiny_parent: Callable[..., Path]) -> Any:
    return open_parent(tiny_parent("qwen2", hidden_size=64, intermediate_size=172))


def config_with(parent: Any, layer: int) -> Any:
    blocks = [dict(block) for block in parent.config.blocks]
    blocks[layer] = {slot: {**entry, FORMAT: TWO_OF_FOUR} for slot, entry in blocks[layer].items()}
    return parent.config.with_blocks(blocks)


def test_what_is_timed_is_packed_and_has_the_bytes_that_budgets_count(parent: Any) -> None:
    config = config_with(parent, 1)
    model = random_model(config, torch.float32, torch.device("cpu"))
    packed = [name for name, module in model.named_modules() if isinstance(module, SparseLinear)]
    assert len(packed) == 7
    assert all(name.startswith("model.layers.1.") for name in packed)
    assert not parent.shape.tied
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held == ENGINE.storage("parent", "cpu").model(parent.shape, config.blocks)
    assert held < ENGINE.storage("parent", "cpu").model(parent.shape, parent.shape.blocks)
    assert not config.packed


def test_it_talks_as_the_rounded_model(parent: Any, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(parent.ends_state())
    for layer in range(parent.shape.num_layers):
        state |= {layer_prefix(layer) + name: tensor for name, tensor in parent.layer_state(layer).items()}
    model = Trained("a", config_with(parent, 1), parent.folder, state)
    whole: Any = InlayForCausalLM(parent.config)
    whole.load_state_dict(
        {
            name: rounded(tensor, SPARSE[TWO_OF_FOUR])
            if name.startswith("model.layers.1.") and tensor.ndim == 2
            else tensor
            for name, tensor in state.items()
        },
        strict=False,
    )
    whole.eval().tie_weights()
    ids = [1, 50, 60, 70]
    with torch.inference_mode():
        for _ in range(12):
            ids.append(int(whole(torch.tensor([ids])).logits[0, -1].argmax()))
    with ENGINE.talk({"m": model}, Target("cpu", "float32", "parent"), 1, tmp_path) as talk:
        assert list(talk.continuations(ids[:4], 12, stops=())["m"].ids) == ids[4:]


def test_a_format_of_others_is_told(parent: Any) -> None:
    entry = {**parent.shape.parent_entry(0, "ffn"), FORMAT: "q4_0"}
    told = "transformers has no q4_0; its formats of subblocks are 2:4"
    assert ENGINE.problem(entry, "ffn", parent.shape, "parent") == told
