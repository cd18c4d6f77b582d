"""Adapters: they change nothing at first, are all that is trained, and are in the weights afterwards."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from inlay.distill.adapters import RANK, Merged, add_adapters
from inlay.distill.checkpoint import Checkpoint, SavedState
from inlay.distill.globally import distill_globally
from inlay.distill.settings import GlobalSettings
from inlay.nas.modeling import InlayConfig, InlayForCausalLM

SETTINGS = GlobalSettings(steps=6, learning_rate=3e-3)
BLOCKS = [
    {"attention": {"kind": "full", "kv_heads": 2}, "ffn": {"kind": "gated", "width": 48}},
    {"attention": {"kind": "linear"}, "ffn": {"kind": "no_op"}},
    {"attention": {"kind": "no_op"}, "ffn": {"kind": "no_op"}},
    {"attention": {"kind": "window", "kv_heads": 1, "heads": 2, "window": 8, "sinks": 2}, "ffn": {"kind": "linear"}},
]
LINEARS = 4 + 3 + 1 + 4 + 1


class Killed(Exception):
    """Stands for a kill between two steps."""


def models(bias: bool = False) -> tuple[InlayForCausalLM, InlayForCausalLM]:
    """A random parent and a child of it without adapters."""
    torch.manual_seed(0)
    config = InlayConfig.from_parent(
        LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=2, vocab_size=96, attention_bias=bias, initializer_range=0.2)
    )  # fmt: skip
    parent = InlayForCausalLM(config).requires_grad_(False).eval()
    child = InlayForCausalLM(config.with_blocks(BLOCKS)).eval()
    return parent, child


def adapted(child: InlayForCausalLM, seed: int = 0) -> InlayForCausalLM:
    child.requires_grad_(False)
    for index, layer in enumerate(child.model.layers):
        add_adapters(layer, seed + index)
    return child


def batches(count: int, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 96, (4, 24), generator=random) for _ in range(count)]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(batches(1, 3)[0]).logits
    return found


@pytest.fixture(autouse=True)
def _peft() -> None:
    pytest.importorskip("peft", reason="PEFT is not installed (pip install 'inlay[adapters]')")


@pytest.mark.parametrize("bias", [False, True])
def test_merged_weights_are_the_adapted_model(bias: bool) -> None:
    """As plain weights of a plain model; and before anything is trained they are those that were there."""
    _, child = models(bias)
    before, first = {name: tensor.clone() for name, tensor in child.state_dict().items()}, logits(child)
    adapted(child)
    assert torch.equal(logits(child), first)
    untouched = Merged(child.state_dict())
    assert untouched.keys() == before.keys()
    assert all(torch.equal(untouched[name], before[name]) for name in before)
    for name, parameter in child.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = models(bias)[1]
    plain.load_state_dict(Merged(child.state_dict()))
    assert (logits(plain) - first).abs().max() > 0.1
    torch.testing.assert_close(logits(plain), logits(child), rtol=1e-4, atol=1e-4)


def test_merging_is_pefts_own() -> None:
    _, child = models()
    adapted(child)
    for parameter in child.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = dict(Merged(child.state_dict()))
    layers = [module for module in child.modules() if hasattr(module, "base_layer")]
    assert len(layers) == LINEARS
    for layer in layers:
        layer.merge()
    theirs = {name.replace(".base_layer.", "."): t for name, t in child.state_dict().items() if "lora_" not in name}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_adapters_are_trained_and_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    """Two matrices of `RANK` for each linear layer of each layer; moments and the best state are theirs alone."""
    parent, child = models()
    parent = parent.to(dtype)
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    adapted(child)
    checkpoint = Checkpoint(tmp_path, every_steps=1)
    result = distill_globally(parent, child, batches(6), batches(2, 2), SETTINGS, checkpoint=checkpoint)
    assert result.improved
    saved = checkpoint.load()
    assert saved is not None
    tensors = load_file(checkpoint.path)
    assert tensors.keys() == saved.names
    kinds = {kind: [name for name in tensors if name.startswith(kind)] for kind in ("weight.", "exp_avg.", "best.")}
    assert {len(names) for names in kinds.values()} == {2 * LINEARS}
    assert all(".lora_" in name for name in tensors)
    assert all(RANK in tensors[name].shape for name in kinds["exp_avg."])
    now = Merged(child.state_dict())
    changed = {name for name in now if not torch.equal(now[name], before[name])}
    assert len(changed) == LINEARS
    assert not any("norm" in name or "embed" in name or "lm_head" in name for name in changed)
    for name, tensor in child.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, before[name.replace(".base_layer.", ".")])


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: Path, killed_at: int | None = None) -> dict[str, Tensor]:
        parent, child = models()
        adapted(child, seed=5)

        def on_step(step: int, steps: int, losses: Any) -> None:
            if step == killed_at:
                raise Killed

        distill_globally(
            parent, child, batches(6), batches(2, 2), SETTINGS, on_step=on_step,
            checkpoint=Checkpoint(folder, every_steps=1),
        )  # fmt: skip
        return Merged(child.state_dict())

    whole = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "killed", killed_at=4)
    state: SavedState | None = Checkpoint(tmp_path / "killed").load()
    assert state is not None
    assert state.progress["done"] == 3
    again = trained(tmp_path / "killed")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_seed_says_what_is_drawn_and_nothing_else_is() -> None:
    first, same, other = (adapted(models()[1], seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    torch.manual_seed(9)
    wanted = torch.rand(3)
    torch.manual_seed(9)
    add_adapters(layer, 3)
    assert torch.equal(torch.rand(3), wanted)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    said = re.escape("adapters need PEFT, which is not installed here; install inlay with its extra: pip install "
                     "'inlay[adapters]'")  # fmt: skip
    with pytest.raises(ImportError, match=said):
        add_adapters(torch.nn.Sequential(torch.nn.Linear(4, 4)), 0)
