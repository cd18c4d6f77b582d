"""Training: gradients reach everything, checkpointing changes nothing, and hidden states are what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

from inlay.nas.modeling import Ends, build_layer, make_context

CHANGES: dict[int, dict[str, Any]] = {
    0: {"attention": {"kind": "no_op"}, "ffn": {"kind": "gated", "width": 8}},
    1: {"attention": {"kind": "window", "kv_heads": 1, "window": 6, "sinks": 2}, "ffn": {"kind": "no_op"}},
    2: {"attention": {"kind": "linear"}, "ffn": {"kind": "linear"}},
}


def gradients(model: Any, ids_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(ids_BS, labels=ids_BS).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_checkpointing_changes_no_gradient(family: str, make_child: Any) -> None:
    child = make_child(family, CHANGES).train()
    ids_BS = torch.randint(2, 97, (2, 20))
    expected = gradients(child, ids_BS)
    assert all(gradient is not None and gradient.any() for gradient in expected.values())
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    child.model.layers[3].mlp.register_forward_pre_hook(count)
    child.activation_checkpointing_enable()
    got = gradients(child, ids_BS)
    assert calls == 2
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_checkpointing_takes_no_cache(make_child: Any) -> None:
    child = make_child("llama", CHANGES).train()
    child.activation_checkpointing_enable()
    ids_BS = torch.randint(2, 97, (2, 20))
    assert child(ids_BS).past_key_values is None
    with pytest.raises(
        ValueError, match="gradient checkpointing computes a layer twice, so it takes no past_key_values"
    ):
        child(ids_BS, past_key_values=child.new_cache())


def test_a_branch_trains_alone(make_child: Any) -> None:
    """A single-slot layer is built frozen; thawed, its update has gradients for every tensor it has."""
    child = make_child("qwen3", CHANGES)
    state = {name: tensor.clone() for name, tensor in child.model.layers[1].state_dict().items()}
    entry = child.config.blocks[1]["attention"]
    layer = build_layer(child.config, 1, entry, None, state, torch.float32)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert set(layer.state_dict()) == set(state)
    layer.requires_grad_(True)
    context = make_context(child.config, 2, 20, torch.float32, "cpu", [entry])
    layer.attention_update(torch.randn(2, 20, 32), context).pow(2).mean().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_build_layer_is_strict(make_child: Any) -> None:
    child = make_child("llama", {})
    state = child.model.layers[0].state_dict()
    block = child.config.blocks[0]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build_layer(child.config, 0, block["attention"], None, state, torch.float32)
    state.pop("mlp.up_proj.weight")
    with pytest.raises(RuntimeError, match="Missing key"):
        build_layer(child.config, 0, block["attention"], block["ffn"], state, torch.float32)
    with pytest.raises(ValueError, match="layer 7 attention: kv_heads is 3"):
        build_layer(child.config, 7, {"kind": "full", "kv_heads": 3}, None, {}, torch.float32)


def test_build_layer_shares_memory_and_casts(make_child: Any) -> None:
    child = make_child("llama", {})
    state, block = child.model.layers[0].state_dict(), child.config.blocks[0]
    same = build_layer(child.config, 0, block["attention"], block["ffn"], state, torch.float32)
    assert same.mlp.up_proj.weight.data_ptr() == state["mlp.up_proj.weight"].data_ptr()
    cast = build_layer(child.config, 0, block["attention"], block["ffn"], state, torch.bfloat16)
    assert {tensor.dtype for tensor in cast.state_dict().values()} == {torch.bfloat16}
    assert child.config._attn_implementation == "sdpa"


def test_hidden_states(make_child: Any) -> None:
    child = make_child("llama", CHANGES)
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        outputs = child(ids_BS, output_hidden_states=True, use_cache=False)
        layer_outputs, normed_BSD = child.forward_hidden(ids_BS)
    assert len(outputs.hidden_states) == 5
    assert torch.equal(outputs.hidden_states[0], child.model.embed_tokens(ids_BS))
    assert all(torch.equal(a, b) for a, b in zip(outputs.hidden_states[1:-1], layer_outputs[:-1], strict=True))
    assert torch.equal(outputs.hidden_states[-1], normed_BSD)
    assert torch.equal(child.model.norm(layer_outputs[-1]), normed_BSD)
    assert torch.equal(normed_BSD @ child.head_VD.T, outputs.logits)


def test_attentions(make_child: Any) -> None:
    child = make_child("llama", CHANGES)
    ids_BS = torch.randint(2, 97, (2, 20))
    with pytest.raises(ValueError, match="output_attentions needs the model loaded with attn_implementation='eager'"):
        child(ids_BS, output_attentions=True)
    child.set_attn_implementation("eager")
    attentions = child(ids_BS, output_attentions=True).attentions
    assert [weights is None for weights in attentions] == [True, False, True, False]
    assert attentions[1].shape == (2, 4, 20, 20)
    assert attentions[1][0, 0, 15].nonzero().flatten().tolist() == [0, 1, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5])], ids=str)
def test_logits_to_keep(keep: Any, make_child: Any) -> None:
    child = make_child("llama", CHANGES)
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        whole, part = child(ids_BS).logits, child(ids_BS, logits_to_keep=keep).logits
    rows = slice(-keep, None) if isinstance(keep, int) else keep
    torch.testing.assert_close(part, whole[:, rows])
    logits, *_ = child(ids_BS, logits_to_keep=keep, return_dict=False)
    assert torch.equal(logits, part)


def test_ends(make_child: Any) -> None:
    for family in ("llama", "qwen2"):
        child = make_child(family, {})
        ends = Ends(child.config, child.state_dict(), torch.bfloat16)
        assert ends.head_VD.dtype == torch.bfloat16
        assert ends.embed(torch.tensor([[3, 4]])).shape == (1, 2, 32)
        assert not any(parameter.requires_grad for parameter in ends.parameters())
        assert (ends.head_VD is ends.embedding_VD) == child.config.tie_word_embeddings


def test_one_of_ids_and_embeds(make_child: Any) -> None:
    child = make_child("llama", {})
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        child()


def test_compiled_without_cache(make_child: Any) -> None:
    """No graph break: sizes that differ from layer to layer are one graph."""
    child = make_child("llama", CHANGES)
    ids_BS = torch.randint(2, 97, (2, 20))
    compiled = torch.compile(child, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(ids_BS, use_cache=False).logits, child(ids_BS, use_cache=False).logits, rtol=0, atol=1e-5
        )


@pytest.mark.slow
def test_compiled_decoding(make_child: Any) -> None:
    """Over a static cache all steps are one graph, windows with sinks included."""
    child = make_child("llama", CHANGES)
    graphs = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    ids_BS = torch.randint(2, 97, (2, 12))
    static, dynamic = StaticCache(config=child.config, max_cache_len=40), child.new_cache()
    compiled = torch.compile(child.forward, fullgraph=True, backend=count)
    with torch.no_grad():
        child(ids_BS, past_key_values=static)
        child(ids_BS, past_key_values=dynamic)
        for _ in range(10):
            next_B1 = torch.randint(2, 97, (2, 1))
            expected = child(next_B1, past_key_values=dynamic).logits
            got = compiled(next_B1, past_key_values=static).logits
            torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    assert graphs == 1
