"""Tiny random parents of the four families, and children of them; everything here runs in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
)

from inlay.nas.modeling import InlayConfig, InlayForCausalLM, family_config_class

PARENT_CLASSES = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "mixtral": MixtralForCausalLM,
    "qwen3_moe": Qwen3MoeForCausalLM,
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 6, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
}

MakeParent = Callable[..., PreTrainedModel]
MakeChild = Callable[..., InlayForCausalLM]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough that greedy choices are far apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.copy_(1 + noise if "norm" in name else noise)


@pytest.fixture
def make_parent() -> MakeParent:
    """`make_parent(family, dtype=..., attn_implementation=..., **config)`: Transformers' own class, random weights."""

    def make(
        family: str, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa", **overrides: Any
    ) -> PreTrainedModel:
        config = family_config_class(family)(**{**SIZES, **OF_FAMILY[family], **overrides})
        cls = PARENT_CLASSES[family]
        model = cls(config)
        randomise(model, seed=1)
        return cls.from_pretrained(
            None,
            config=config,
            state_dict=model.state_dict(),
            dtype=dtype,
            attn_implementation=attn_implementation,
        ).eval()

    return make


@pytest.fixture
def as_inlay() -> Callable[[PreTrainedModel], InlayForCausalLM]:
    """The same weights in an inlay model whose every block is the parent's."""

    def convert(parent: PreTrainedModel) -> InlayForCausalLM:
        return InlayForCausalLM.from_pretrained(
            None,
            config=InlayConfig.from_parent(parent.config),
            state_dict=parent.state_dict(),
            dtype=parent.dtype,
            attn_implementation=parent.config._attn_implementation,
        ).eval()

    return convert


@pytest.fixture
def make_child() -> MakeChild:
    """`make_child(family, {layer: {slot: entry}}, **config)`: a random child with those entries changed."""

    def make(family: str, changes: dict[int, dict[str, Any]], **overrides: Any) -> InlayForCausalLM:
        config = InlayConfig.from_parent(family_config_class(family)(**{**SIZES, **OF_FAMILY[family], **overrides}))
        blocks = [{**block, **changes.get(index, {})} for index, block in enumerate(config.blocks)]
        child = InlayForCausalLM(config.with_blocks(blocks)).eval()
        randomise(child, seed=2)
        return child

    return make
