"""Local distillation of real small layers: what is learned, what is kept, what fails alone, what repeats."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from inlay.distill.branches import LayerBatch
from inlay.distill.local import BranchResult, train_layer
from inlay.distill.settings import LocalSettings, Through

SETTINGS = LocalSettings(steps=60, learning_rate=3e-3)
Run = Callable[..., list[BranchResult]]


def train(here: Any, branches: Any, settings: LocalSettings = SETTINGS, **batches: Any) -> list[BranchResult]:
    count = settings.steps + settings.held_out
    return train_layer(here.parent, branches, here.batches(count, **batches), settings)


def same_state(one: BranchResult, other: BranchResult) -> bool:
    return one.state.keys() == other.state.keys() and all(torch.equal(one.state[n], other.state[n]) for n in one.state)


@pytest.mark.parametrize("through", ["subblock", "layer"])
def test_the_parents_own_weights_have_no_loss_and_stay_what_they_were(place: Any, through: Any) -> None:
    here = place("llama")
    branches = [here.branch(f"{slot}:parent", start=here.parent) for slot in ("attention", "ffn")]
    for result in train(here, branches, replace(SETTINGS, steps=5, through=through)):
        assert result.start_loss < 1e-10
        assert result.kept == "start"
        own = here.parent.state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in result.state.items())


def test_every_kind_of_variant_learns_and_reports_honestly(place: Any) -> None:
    here = place("llama")
    labels = ["attention:kv_heads=1", "attention:window=16", "attention:linear", "ffn:width=24", "ffn:linear"]
    results = train(here, [here.branch(label) for label in labels])
    assert [result.label for result in results] == labels
    for result in results:
        assert result.status == "trained"
        assert result.kept == "trained"
        assert result.final_loss < 0.8 * result.start_loss
        assert len(result.curve) == SETTINGS.steps
        assert result.curve[-1] == pytest.approx(result.final_loss, rel=0.5)
        assert all(tensor.dtype == torch.float32 for tensor in result.state.values())


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families_learn_too(place: Any, family: str) -> None:
    here = place(family)
    branches = [here.branch(label) for label in ("attention:kv_heads=1", "ffn:width=24")]
    for result in train(here, branches):
        assert result.final_loss < 0.9 * result.start_loss


def test_a_linear_variant_recovers_a_linear_map(place: Any) -> None:
    here = place("llama")
    here.parent = here.layer("linear", "linear", seed=0).requires_grad_(False)
    branches = [here.branch("attention:linear"), here.branch("ffn:linear")]
    results = train(here, branches, replace(SETTINGS, steps=300, learning_rate=2e-2))
    for result in results:
        assert result.final_loss < 1e-3 * result.start_loss


def test_through_the_layer_judges_the_whole_layers_update(place: Any) -> None:
    here = place("llama")
    settings = replace(SETTINGS, through="layer")
    (result,) = train(here, [here.branch("attention:kv_heads=1")], settings)
    assert result.final_loss < 0.8 * result.start_loss
    batch, *_ = list(here.batches(settings.steps + 2))[-2:]
    hidden_BSD, context = batch.hidden_BSD, batch.context
    layer = here.branch("attention:kv_heads=1").layer
    layer.load_state_dict(result.state)
    update_BSD = layer.attention_update(hidden_BSD, context)
    whole_BSD = update_BSD + here.parent.ffn_update(hidden_BSD + update_BSD)
    parent_BSD = here.parent(hidden_BSD, context) - hidden_BSD
    error = (whole_BSD - parent_BSD).square().sum() / parent_BSD.square().sum()
    assert float(error.detach()) == pytest.approx(result.final_loss, rel=0.2)


def test_an_ffn_alone_learns_the_update_of_its_whole_layer(place: Any) -> None:
    """Beside another that learns the ffn's own: the loss is that of the layer without attention, on what it reads."""
    here = place("llama")
    branch, other = here.branch("ffn:width=24"), here.branch("ffn:width=24")
    alone, behind = train(here, [replace(branch, alone=True), other])
    assert alone.final_loss < 0.9 * alone.start_loss
    batch, *_ = list(here.batches(SETTINGS.steps + 2))[-2:]
    branch.layer.load_state_dict(alone.state)
    update_BSD = branch.layer.ffn_update(batch.hidden_BSD)
    parent_BSD = here.parent(batch.hidden_BSD, batch.context) - batch.hidden_BSD
    error = (update_BSD - parent_BSD).square().sum() / parent_BSD.square().sum()
    assert float(error.detach()) == pytest.approx(alone.final_loss, rel=0.2)
    (company,) = train(here, [here.branch("ffn:width=24")])
    assert same_state(behind, company)


def test_training_that_makes_it_worse_keeps_the_start(place: Any) -> None:
    here = place("llama")
    branch = here.branch("attention:window=16", start=here.parent)
    before = {name: tensor.clone() for name, tensor in branch.layer.state_dict().items()}
    (result,) = train(here, [branch], replace(SETTINGS, steps=8, learning_rate=0.5))
    assert result.status == "trained"
    assert result.kept == "start"
    assert result.final_loss == result.start_loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.state.items())


def test_a_variant_that_diverges_fails_alone(place: Any) -> None:
    here = place("llama")
    labels = ["attention:kv_heads=1", "ffn:width=24"]
    alone = train(here, [here.branch(label) for label in labels])
    broken = here.branch("ffn:linear")
    with torch.no_grad():
        broken.layer.mlp.weight.fill_(3e38)
    first, failed, second = train(here, [here.branch(labels[0]), broken, here.branch(labels[1])])
    assert failed.status == "failed"
    assert failed.state == {}
    assert failed.reason == ("loss was not finite at step 2 of 60, after going back once to a learning rate of 0.001")
    assert same_state(first, alone[0])
    assert same_state(second, alone[1])
    assert first.curve == alone[0].curve


def test_a_rate_far_too_high_never_gives_a_worse_variant(place: Any) -> None:
    here = place("llama")
    (result,) = train(here, [here.branch("ffn:width=24")], replace(SETTINGS, learning_rate=1e6))
    assert result.status == "failed" or result.kept == "start"


def test_input_that_is_not_finite_fails_every_variant(place: Any) -> None:
    here = place("llama")
    batches = [replace(batch, hidden_BSD=batch.hidden_BSD * float("nan")) for batch in here.batches(6)]
    branches = [here.branch("ffn:linear"), here.branch("attention:kv_heads=1")]
    for result in train_layer(here.parent, branches, batches, replace(SETTINGS, steps=4)):
        assert result.status == "failed"
        assert "not finite at step 2 of 4" in result.reason
        assert math.isnan(result.curve[0])


def test_a_single_bad_batch_is_survived_at_a_third_of_the_rate(place: Any) -> None:
    here = place("llama")
    batches = list(here.batches(42))
    batches[36] = replace(batches[36], hidden_BSD=batches[36].hidden_BSD * float("inf"))
    (result,) = train_layer(here.parent, [here.branch("ffn:width=24")], batches, replace(SETTINGS, steps=40))
    assert result.status == "trained"
    assert not math.isfinite(result.curve[36])
    assert result.curve[37] < result.curve[0]
    assert result.final_loss < result.start_loss


def test_a_run_repeats_bit_for_bit(place: Any) -> None:
    here = place("qwen2")
    labels = ["attention:kv_heads=1", "attention:window=16", "attention:linear", "ffn:width=24", "ffn:linear"]
    runs = [train(here, [here.branch(label) for label in labels], replace(SETTINGS, steps=10)) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert same_state(one, other)
        assert (one.curve, one.start_loss, one.final_loss) == (other.curve, other.start_loss, other.final_loss)


def test_a_variant_does_not_depend_on_its_company(place: Any) -> None:
    here = place("llama")
    settings = replace(SETTINGS, steps=10)
    (alone,) = train(here, [here.branch("attention:kv_heads=1")], settings)
    together = train(here, [here.branch("ffn:linear"), here.branch("attention:kv_heads=1")], settings)
    assert same_state(alone, together[1])


def test_the_parent_is_left_as_it_was(place: Any) -> None:
    here = place("llama")
    before = {name: tensor.clone() for name, tensor in here.parent.state_dict().items()}
    train(here, [here.branch("attention:kv_heads=1")], replace(SETTINGS, steps=3, through="layer"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in here.parent.state_dict().items())
    assert all(parameter.grad is None for parameter in here.parent.parameters())


def test_a_bfloat16_parent_trains_float32_masters(place: Any) -> None:
    here = place("llama")
    here.parent = here.parent.to(torch.bfloat16)
    context = here.context(4, 32, torch.bfloat16)
    batches = [LayerBatch(batch.hidden_BSD.bfloat16(), context) for batch in here.batches(62)]
    branches = [here.branch(label) for label in ("attention:kv_heads=1", "ffn:width=24", "ffn:linear")]
    for result in train_layer(here.parent, branches, batches, SETTINGS):
        assert result.final_loss < 0.9 * result.start_loss
        assert all(tensor.dtype == torch.float32 for tensor in result.state.values())


@pytest.mark.parametrize("through", ["subblock", "layer"])
def test_a_float16_parent_trains_float32_masters(place: Any, through: Through) -> None:
    here = place("llama")
    here.parent = here.parent.half()
    context = here.context(4, 32, torch.float16)
    batches = [LayerBatch(batch.hidden_BSD.half(), context) for batch in here.batches(62)]
    branches = [here.branch(label) for label in ("attention:kv_heads=1", "ffn:width=24", "ffn:linear")]
    types: set[torch.dtype] = set()
    branches[2].layer.mlp.register_forward_hook(lambda module, read, output: types.add(output.dtype))
    for result in train_layer(here.parent, branches, batches, replace(SETTINGS, through=through)):
        assert result.final_loss < 0.9 * result.start_loss
        assert all(tensor.dtype == torch.float32 for tensor in result.state.values())
    assert types == {torch.bfloat16}


def test_clipping_bounds_the_step_and_progress_is_told(place: Any) -> None:
    here = place("llama")
    told: list[tuple[int, int, float]] = []
    settings = replace(SETTINGS, steps=3, clip=1e-3)
    branches = [here.branch("ffn:width=24"), here.branch("ffn:linear")]
    results = train_layer(here.parent, branches, here.batches(5), settings, on_step=lambda *at: told.append(at))
    assert all(result.status == "trained" for result in results)
    means = [sum(losses) / 2 for losses in zip(*(result.curve for result in results), strict=True)]
    assert told == [(step, 3, mean) for step, mean in enumerate(means, start=1)]


def test_no_variants_need_no_parent_pass(place: Any) -> None:
    assert train_layer(place("llama").parent, [], iter(()), SETTINGS) == []


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_outcomes_at_hand_give_what_the_layer_would(place: Any, family: str) -> None:
    here = place(family)
    labels = ["attention:kv_heads=1", "ffn:width=24"]
    ran = train(here, [here.branch(label) for label in labels])
    given = []
    with torch.no_grad():
        for batch in here.batches(SETTINGS.steps + SETTINGS.held_out):
            middle_BSD = batch.hidden_BSD + here.parent.attention_update(batch.hidden_BSD, batch.context)
            given.append(replace(batch, outcome=(middle_BSD, middle_BSD + here.parent.ffn_update(middle_BSD))))
        silent = copy.deepcopy(here.parent)
        for parameter in silent.parameters():
            parameter.zero_()
    read = train_layer(silent, [here.branch(label) for label in labels], given, SETTINGS)
    for result, theirs in zip(read, ran, strict=True):
        assert result.final_loss == pytest.approx(theirs.final_loss, rel=1e-3)
        assert result.curve == pytest.approx(theirs.curve, rel=1e-3)


def test_too_few_and_too_many_batches_are_named(place: Any) -> None:
    here = place("llama")
    for count, message in ((4, "4 batches came, but 3 to train on and 2 held out"), (6, "more batches than the 3")):
        with pytest.raises(ValueError, match=message):
            train_layer(here.parent, [here.branch("ffn:linear")], here.batches(count), replace(SETTINGS, steps=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "`steps` is 0"),
        ({"held_out": 0}, "`held_out` is 0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"weight_decay": -1.0}, "`weight_decay` -1.0"),
        ({"clip": 0.0}, "`clip` is 0.0"),
        ({"warmup": 1.5}, "`warmup` is 1.5"),
    ],
)
def test_settings_out_of_bounds_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalSettings(**{"steps": 3, **change})
