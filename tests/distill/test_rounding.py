"""Training through rounding: what is computed with is rounded, what is trained lies behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from inlay.distill.checkpoint import Checkpoint
from inlay.distill.globally import GlobalResult, distill_globally
from inlay.distill.judge import Judge
from inlay.distill.parallel import Ranks
from inlay.distill.rounding import Rounding, rounded
from inlay.distill.settings import GlobalSettings
from inlay.nas.modeling import InlayConfig, InlayForCausalLM

SETTINGS = GlobalSettings(steps=96, learning_rate=3e-3)
STEP = 0.125


class Killed(Exception):
    """Stands for a kill between two steps."""


def to_steps(weights: Tensor) -> Tensor:
    return (weights / STEP).round() * STEP


def model() -> InlayForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return InlayForCausalLM(InlayConfig.from_parent(config)).eval()


def rounding_of(child: InlayForCausalLM) -> Rounding:
    """Of every matrix, the tied embedding among them."""
    return {name: to_steps for name, parameter in child.named_parameters() if parameter.ndim == 2}


def batches(count: int, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 96, (4, 24), generator=random) for _ in range(count)]


def weights(child: InlayForCausalLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in child.state_dict().items()}


def train(settings: GlobalSettings = SETTINGS, **options: Any) -> tuple[GlobalResult, InlayForCausalLM]:
    parent, child = model().requires_grad_(False), model()
    rounding = rounding_of(child)
    result = distill_globally(
        parent, child, batches(settings.steps), batches(2, seed=2), settings, rounding=rounding, **options
    )
    return result, child


def test_gradients_are_those_of_the_rounded_weights() -> None:
    child, other = model(), model()
    before = weights(child)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter.copy_(to_steps(parameter))
    (ids_BS,) = batches(1)
    with rounded(child, rounding_of(child)):
        child(ids_BS).logits.square().mean().backward()
    other(ids_BS).logits.square().mean().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in child.state_dict().items())
    for (name, one), (_, two) in zip(child.named_parameters(), other.named_parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, two.grad), name
        assert one.grad.abs().max() > 0, name


def test_what_is_trained_is_good_after_rounding() -> None:
    result, child = train()
    assert result.start_kl_nats is not None
    assert result.best_kl_nats is not None
    assert result.best_kl_nats < 0.85 * result.start_kl_nats
    parent, held_out = model().requires_grad_(False), batches(2, seed=2)
    judge: Callable[..., Judge] = lambda *rounding: Judge(parent, child, held_out, SETTINGS, Ranks(), *rounding)  # noqa: E731
    assert judge(rounding_of(child)).kl_nats() == result.best_kl_nats
    assert not torch.equal(to_steps(child.lm_head.weight), child.lm_head.weight)
    with torch.no_grad():
        for parameter in child.parameters():
            if parameter.ndim == 2:
                parameter.copy_(to_steps(parameter))
    assert judge().kl_nats() == result.best_kl_nats


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=24)
    result, child = train(settings)

    def kill(step: int, steps: int, losses: dict[str, float]) -> None:
        if step == 13:
            raise Killed

    checkpoint = Checkpoint(tmp_path, every_steps=1, every_seconds=None)
    with pytest.raises(Killed):
        train(settings, on_step=kill, checkpoint=checkpoint)
    again, resumed = train(settings, checkpoint=checkpoint)
    assert again == result
    assert all(torch.equal(tensor, weights(child)[name]) for name, tensor in resumed.state_dict().items())
