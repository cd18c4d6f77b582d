"""The rearranged updates and errors equal what the layers' own modules give, for every family and kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay.distill.updates import Slot, error_of, slot_input, update_of
from inlay.kernels import update_mse, update_scale

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VARIANTS = [("attention", "parent"), ("attention", "kv_heads=1"), ("attention", "heads=2"), ("attention", "window=16"),
            ("attention", "heads=3+window=16"), ("attention", "linear"),
            ("ffn", "parent"), ("ffn", "width=24"), ("ffn", "linear")]  # fmt: skip


def own_update(layer: Any, slot: Slot, hidden_BSD: torch.Tensor, context: Any) -> torch.Tensor:
    update: torch.Tensor = (
        layer.ffn_update(hidden_BSD) if slot == "ffn" else layer.attention_update(hidden_BSD, context)
    )
    return update


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("slot", "name"), VARIANTS)
def test_update_equals_the_modules_own(place: Any, family: str, slot: Slot, name: str) -> None:
    here = place(family)
    layer = here.branch(f"{slot}:{name}").layer.requires_grad_(False)
    (batch,) = here.batches(1, batch=3, sequence=70)
    hidden_BSD, context = batch.hidden_BSD, batch.context
    update_BSD = update_of(layer, slot_input(here.parent, slot, hidden_BSD, context))
    torch.testing.assert_close(update_BSD, own_update(layer, slot, hidden_BSD, context), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("slot", "name"), VARIANTS)
def test_error_and_its_gradients_equal_the_modules_own(place: Any, family: str, slot: Slot, name: str) -> None:
    here = place(family)
    layer = here.branch(f"{slot}:{name}").layer
    (batch,) = here.batches(1, batch=3, sequence=70)
    hidden_BSD, context = batch.hidden_BSD, batch.context
    answer_BSD = own_update(here.parent, slot, hidden_BSD, context)
    parameters = dict(layer.named_parameters())
    own = update_mse(own_update(layer, slot, hidden_BSD, context), answer_BSD)
    own_gradients = torch.autograd.grad(own, list(parameters.values()))
    ours = error_of(layer, slot_input(here.parent, slot, hidden_BSD, context), answer_BSD, update_scale(answer_BSD))
    gradients = torch.autograd.grad(ours, list(parameters.values()))
    assert float(ours.detach()) == pytest.approx(float(own.detach()), rel=1e-4)
    for key, mine, theirs in zip(parameters, gradients, own_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_a_variant_through_the_parents_frozen_ffn(place: Any, family: str) -> None:
    here = place(family)
    layer = here.branch("attention:kv_heads=1").layer
    (batch,) = here.batches(1, batch=3, sequence=70)
    hidden_BSD, context = batch.hidden_BSD, batch.context

    def whole(attention: Any, ffn: Any) -> torch.Tensor:
        update_BSD = attention(hidden_BSD)
        return update_BSD + ffn(hidden_BSD + update_BSD)

    ours = whole(
        lambda hidden: update_of(layer, slot_input(here.parent, "attention", hidden, context)),
        lambda hidden: update_of(here.parent, slot_input(here.parent, "ffn", hidden, context)),
    )
    own = whole(lambda hidden: layer.attention_update(hidden, context), here.parent.ffn_update)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)
    mine, theirs = (torch.autograd.grad((one * weights).sum(), list(layer.parameters())) for one in (ours, own))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_band_too_large_to_keep_runs_as_the_module_does(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = place("llama")
    layer = here.branch("attention:window=16").layer.requires_grad_(False)
    (batch,) = here.batches(1, batch=2, sequence=40)
    hidden_BSD, context = batch.hidden_BSD, batch.context
    monkeypatch.setattr("inlay.distill.updates.LARGEST_BAND_BYTES", 0)
    update_BSD = update_of(layer, slot_input(here.parent, "attention", hidden_BSD, context))
    assert torch.equal(update_BSD, layer.attention_update(hidden_BSD, context))
