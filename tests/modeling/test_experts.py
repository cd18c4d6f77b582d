"""Parents with experts: ours beside Transformers' own class, which computes all experts of a layer in two tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.nas.families import open_parent
from inlay.nas.modeling import InlayConfig, InlayForCausalLM


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_parent_read_expert_by_expert_is_transformers_own(family: str, tiny_parent: Callable[..., Path]) -> None:
    folder = tiny_parent(family)
    parent = open_parent(folder)
    states = [parent.layer_state(layer) for layer in range(parent.shape.num_layers)]
    state = parent.ends_state() | {
        f"model.layers.{layer}.{name}": tensor for layer, own in enumerate(states) for name, tensor in own.items()
    }
    ours = InlayForCausalLM(parent.config).eval()
    if parent.shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    ours.load_state_dict(state)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids_BS = torch.randint(3, 259, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids_BS).logits, theirs(ids_BS).logits, atol=1e-5, rtol=0)
    told = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert ours.generate(ids_BS, **told).equal(theirs.generate(ids_BS, **told))


def test_layers_are_dense_where_the_config_says_so(make_parent: Any) -> None:
    config = make_parent("qwen3_moe", mlp_only_layers=[1], decoder_sparse_step=2, num_hidden_layers=6).config
    kinds = [block["ffn"]["kind"] for block in InlayConfig.from_parent(config).blocks]
    assert kinds == ["gated", "gated", "gated", "experts", "gated", "experts"]


def test_a_child_with_fewer_is_saved_and_read(make_child: Any, tmp_path: Path) -> None:
    entry = {"kind": "experts", "experts": 3, "active": 1, "expert_width": 8}
    child = make_child("qwen3_moe", {0: {"ffn": entry}, 2: {"ffn": {"kind": "no_op"}}})
    child.save_pretrained(tmp_path)
    again = InlayForCausalLM.from_pretrained(tmp_path).eval()
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        assert again(ids_BS).logits.equal(child(ids_BS).logits)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"experts": 2, "active": 3, "expert_width": 8}, "active is 3; it must not be above the 2 experts"),
        ({"experts": 2, "active": 0, "expert_width": 8}, "active is 0; it must be an integer of at least 1"),
    ],
)
def test_what_no_layer_can_be(make_child: Any, entry: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_child("mixtral", {0: {"ffn": {"kind": "experts", **entry}}})
