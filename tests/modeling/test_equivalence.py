"""An inlay model on a parent's own weights is Transformers' own class, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.nas.modeling import Ends, InlayForCausalLM, build_layer, make_context

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def padded_batch(vocab: int = 97) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BS = torch.randint(2, vocab, (3, 14))
    mask_BS = torch.ones_like(ids_BS)
    for row, padding in enumerate((0, 3, 9)):
        ids_BS[row, :padding] = 0
        mask_BS[row, :padding] = 0
    return ids_BS, mask_BS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
class TestParent:
    def test_logits(
        self, family: str, implementation: str, dtype: torch.dtype, make_parent: Any, as_inlay: Any
    ) -> None:
        parent = make_parent(family, dtype, implementation)
        ours = as_inlay(parent)
        ids_BS = torch.randint(2, 97, (2, 20))
        with torch.no_grad():
            for use_cache in (True, False):
                assert torch.equal(parent(ids_BS, use_cache=use_cache).logits, ours(ids_BS, use_cache=use_cache).logits)

    def test_padded_logits(
        self, family: str, implementation: str, dtype: torch.dtype, make_parent: Any, as_inlay: Any
    ) -> None:
        parent = make_parent(family, dtype, implementation)
        ours = as_inlay(parent)
        ids_BS, mask_BS = padded_batch()
        with torch.no_grad():
            for kept in (None, (mask_BS.cumsum(-1) - 1).clamp(min=0)):
                theirs = parent(ids_BS, attention_mask=mask_BS, position_ids=kept).logits
                assert torch.equal(theirs, ours(ids_BS, attention_mask=mask_BS, position_ids=kept).logits)

    @pytest.mark.parametrize("prompt", [3, 6, 15])
    def test_decoding_logits(
        self, family: str, implementation: str, dtype: torch.dtype, make_parent: Any, as_inlay: Any, prompt: int
    ) -> None:
        """Every step's logits, past the window of 6 for mistral, from prompts below, at and above it."""
        parent = make_parent(family, dtype, implementation)
        ours = as_inlay(parent)
        ids_BS = torch.randint(2, 97, (2, prompt))
        theirs, mine = None, None
        with torch.no_grad():
            for _ in range(12):
                expected = parent(ids_BS, past_key_values=theirs, use_cache=True)
                got = ours(ids_BS, past_key_values=mine, use_cache=True)
                assert torch.equal(expected.logits, got.logits)
                theirs, mine = expected.past_key_values, got.past_key_values
                ids_BS = expected.logits[:, -1:].argmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_the_parents(family: str, make_parent: Any, as_inlay: Any) -> None:
    parent = make_parent(family)
    ours = as_inlay(parent)
    ids_BS, mask_BS = padded_batch()
    arguments = {"attention_mask": mask_BS, "max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True}
    expected = parent.generate(ids_BS, output_logits=True, **arguments)
    got = ours.generate(ids_BS, output_logits=True, **arguments)
    assert torch.equal(expected.sequences, got.sequences)
    assert all(torch.equal(a, b) for a, b in zip(expected.logits, got.logits, strict=True))


def test_trained_parents(parents_dir: Path, as_inlay: Any) -> None:
    """Trained weights, whose choices are close: the same logits and tokens, with every parent's own stop tokens."""
    for folder in sorted(path.parent for path in parents_dir.glob("*/model.safetensors")):
        parent = AutoModelForCausalLM.from_pretrained(folder).eval()
        ours = as_inlay(parent)
        ours.generation_config = parent.generation_config
        ids_BS = torch.randint(3, parent.config.vocab_size, (2, 60))
        arguments = {"attention_mask": torch.ones_like(ids_BS), "max_new_tokens": 20, "do_sample": False}
        with torch.no_grad():
            assert torch.equal(parent(ids_BS).logits, ours(ids_BS).logits)
        assert torch.equal(parent.generate(ids_BS, **arguments), ours.generate(ids_BS, **arguments))


def test_some_layers_slide(make_parent: Any, as_inlay: Any) -> None:
    parent = make_parent("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=2)
    ours = as_inlay(parent)
    kinds = [block["attention"]["kind"] for block in ours.config.blocks]
    assert kinds == ["full", "full", "window", "window"]
    ids_BS, mask_BS = padded_batch()
    arguments = {"attention_mask": mask_BS, "max_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(parent(ids_BS).logits, ours(ids_BS).logits)
        assert torch.equal(parent.generate(ids_BS, **arguments), ours.generate(ids_BS, **arguments))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_kinds(rope: dict[str, Any], make_parent: Any, as_inlay: Any) -> None:
    parent = make_parent("llama", rope_parameters=rope)
    ours = as_inlay(parent)
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        assert torch.equal(parent(ids_BS).logits, ours(ids_BS).logits)


def test_packed_documents(make_parent: Any, as_inlay: Any) -> None:
    for family in ("llama", "mistral"):
        parent = make_parent(family)
        ours = as_inlay(parent)
        ids_BS = torch.randint(2, 97, (1, 20))
        positions_BS = torch.cat((torch.arange(8), torch.arange(12)))[None]
        with torch.no_grad():
            expected = parent(ids_BS, position_ids=positions_BS, use_cache=False).logits
            assert torch.equal(expected, ours(ids_BS, position_ids=positions_BS, use_cache=False).logits)


@pytest.mark.slow
def test_flex_attention(make_parent: Any, as_inlay: Any, make_child: Any) -> None:
    """Compiled kernels differ in the last bits; masks do not."""
    child = make_child("qwen3", {1: {"attention": {"kind": "window", "kv_heads": 1, "window": 4, "sinks": 2}}})
    ids_BS, mask_BS = padded_batch()
    with torch.no_grad():
        expected = child(ids_BS, attention_mask=mask_BS).logits
        child.set_attn_implementation("flex_attention")
        got = child(ids_BS, attention_mask=mask_BS).logits
    torch.testing.assert_close(got[mask_BS.bool()], expected[mask_BS.bool()], rtol=0, atol=1e-4)


def single_slot_forward(model: InlayForCausalLM, ids_BS: torch.Tensor) -> torch.Tensor:
    """The whole model, one subblock at a time, each built alone from layer-local tensors."""
    config, state = model.config, model.state_dict()
    context = make_context(config, *ids_BS.shape, model.dtype, "cpu", [block["attention"] for block in config.blocks])
    ends = Ends(config, state, model.dtype)
    hidden_BSD = ends.embed(ids_BS)
    for index, block in enumerate(config.blocks):
        prefix = f"model.layers.{index}."
        local = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        first = {name: local[name] for name in local if name.startswith(("input_layernorm", "self_attn"))}
        second = {name: local[name] for name in local if name not in first}
        attention = build_layer(config, index, block["attention"], None, first, model.dtype)
        hidden_BSD = hidden_BSD + attention.attention_update(hidden_BSD, context)
        hidden_BSD = build_layer(config, index, None, block["ffn"], second, model.dtype)(hidden_BSD, context)
    return ends.norm(hidden_BSD) @ ends.head_VD.T


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_built_alone_compose(family: str, make_child: Any) -> None:
    child = make_child(
        family,
        {
            0: {"attention": {"kind": "window", "kv_heads": 1, "window": 4, "sinks": 2}},
            1: {"attention": {"kind": "linear"}, "ffn": {"kind": "gated", "width": 8}},
            2: {"attention": {"kind": "no_op"}, "ffn": {"kind": "linear"}},
            3: {"attention": {"kind": "full", "kv_heads": 4}, "ffn": {"kind": "no_op"}},
        },
    )
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        assert torch.equal(single_slot_forward(child, ids_BS), child(ids_BS, use_cache=False).logits)


def test_absent_slots_are_the_residual(make_child: Any) -> None:
    child = make_child("llama", {2: {"attention": {"kind": "no_op"}, "ffn": {"kind": "no_op"}}})
    layer = child.model.layers[2]
    hidden_BSD = torch.randn(2, 5, 32)
    context = make_context(child.config, 2, 5, torch.float32, "cpu", [None])
    assert layer(hidden_BSD, context) is hidden_BSD
    assert not list(layer.parameters())
    assert layer.attention_update(hidden_BSD, context).eq(0).all()
    assert layer.ffn_update(hidden_BSD).eq(0).all()


def test_linear_is_its_matrix_on_the_normed_input(make_child: Any) -> None:
    child = make_child("llama", {1: {"attention": {"kind": "linear"}, "ffn": {"kind": "linear"}}})
    layer = child.model.layers[1]
    hidden_BSD = torch.randn(2, 5, 32)
    context = make_context(child.config, 2, 5, torch.float32, "cpu", [])
    with torch.no_grad():
        expected = layer.input_layernorm(hidden_BSD) @ layer.self_attn.weight.T
        torch.testing.assert_close(layer.attention_update(hidden_BSD, context), expected)
        expected = layer.post_attention_layernorm(hidden_BSD) @ layer.mlp.weight.T
        torch.testing.assert_close(layer.ffn_update(hidden_BSD), expected)


def test_full_attention_needs_no_mask(make_parent: Any, as_inlay: Any) -> None:
    config = as_inlay(make_parent("llama")).config
    entries = [{"kind": "full", "kv_heads": 2}, {"kind": "window", "kv_heads": 2, "window": 99, "sinks": 0}]
    context = make_context(config, 2, 50, torch.float32, "cpu", entries)
    assert context.masks == {None: None, (99, 0): None}


def test_window_mask_is_its_definition(make_parent: Any, as_inlay: Any) -> None:
    config = as_inlay(make_parent("llama")).config
    for window, sinks in ((1, 0), (3, 0), (3, 2), (1, 4), (7, 1)):
        entry = {"kind": "window", "kv_heads": 2, "window": window, "sinks": sinks}
        mask = make_context(config, 1, 12, torch.float32, "cpu", [entry]).masks[(window, sinks)]
        expected = [[j <= t and (t - j < window or j < sinks) for j in range(12)] for t in range(12)]
        assert torch.equal(mask[0, 0], torch.tensor(expected))
