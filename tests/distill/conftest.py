"""Small real layers of every family, with random weights, norms and biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from inlay.distill.branches import Branch, LayerBatch
from inlay.nas.modeling import InlayConfig, InlayLayer, build_layer, make_context

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=24),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=12),
}
ATTENTION: dict[str, Any] = {
    "parent": {"kind": "full", "kv_heads": 2},
    "kv_heads=1": {"kind": "full", "kv_heads": 1},
    "heads=2": {"kind": "full", "kv_heads": 1, "heads": 2},
    "heads=3+window=16": {"kind": "window", "kv_heads": 3, "heads": 3, "window": 16, "sinks": 4},
    "window=16": {"kind": "window", "kv_heads": 2, "window": 16, "sinks": 4},
    "linear": {"kind": "linear"},
    "no_op": {"kind": "no_op"},
}
FFN: dict[str, Any] = {
    "parent": {"kind": "gated", "width": 48},
    "width=24": {"kind": "gated", "width": 24},
    "linear": {"kind": "linear"},
    "no_op": {"kind": "no_op"},
}


@dataclass
class Place:
    """One layer of a random parent, and what stands around it."""

    config: InlayConfig
    parent: InlayLayer

    def layer(self, attention: str | None, ffn: str | None, seed: int = 1) -> InlayLayer:
        """A layer of named entries with its own random weights; trainable."""
        return random_layer(self.config, ATTENTION.get(attention or ""), FFN.get(ffn or ""), seed).requires_grad_(True)

    def branch(self, label: str, seed: int = 1, start: InlayLayer | None = None) -> Branch:
        """A variant to train, from random weights or a copy of another layer's."""
        slot, name = label.split(":")
        layer = self.layer(name, None, seed) if slot == "attention" else self.layer(None, name, seed)
        if start is not None:
            given = {name: tensor.clone() for name, tensor in start.state_dict().items() if name in layer.state_dict()}
            layer.load_state_dict(given)
        return Branch(label, slot, layer)  # type: ignore[arg-type]

    def context(self, batch: int, sequence: int, dtype: torch.dtype = torch.float32) -> Any:
        return make_context(self.config, batch, sequence, dtype, "cpu", ATTENTION.values())

    def batches(self, count: int, batch: int = 4, sequence: int = 32, seed: int = 5) -> Iterator[LayerBatch]:
        """Random hidden states; the same ones at every call."""
        random = torch.Generator().manual_seed(seed)
        context = self.context(batch, sequence)
        for _ in range(count):
            yield LayerBatch(torch.randn(batch, sequence, self.config.hidden_size, generator=random), context)


@pytest.fixture
def place() -> Callable[[str], Place]:
    """`place(family)` gives a layer's place in a random parent of that family."""

    def make(family: str) -> Place:
        config = InlayConfig.from_parent(CONFIGS[family]())
        return Place(config, random_layer(config, ATTENTION["parent"], FFN["parent"], 0))

    return make


def random_layer(config: InlayConfig, attention: Any, ffn: Any, seed: int) -> InlayLayer:
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in InlayLayer(config, 0, attention, ffn).state_dict().items():
        noise = torch.randn(tensor.shape, generator=random)
        is_norm = "norm" in name
        state[name] = 1.0 + 0.3 * noise if is_norm else noise * (0.3 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5)
    return build_layer(config, 0, attention, ffn, state, torch.float32)
