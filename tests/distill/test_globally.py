"""Global distillation of small real models: the loss falls, parts add up, and a killed run goes on bit for bit."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig

from inlay.distill import judge as judge_module
from inlay.distill.checkpoint import Checkpoint, TrainingState
from inlay.distill.globally import GlobalResult, distill_globally
from inlay.distill.judge import Judge
from inlay.distill.parallel import Ranks
from inlay.distill.recompute import recompute
from inlay.distill.settings import GlobalSettings
from inlay.nas.modeling import InlayConfig, InlayForCausalLM

SETTINGS = GlobalSettings(steps=12, learning_rate=3e-3)
FULL = {"kind": "full", "kv_heads": 2}
BLOCKS = [
    {"attention": FULL, "ffn": {"kind": "gated", "width": 48}},
    {"attention": {"kind": "window", "kv_heads": 2, "window": 8, "sinks": 2}, "ffn": {"kind": "no_op"}},
    {"attention": {"kind": "no_op"}, "ffn": {"kind": "linear"}},
    {"attention": {"kind": "full", "kv_heads": 1}, "ffn": {"kind": "gated", "width": 24}},
]


class Killed(Exception):
    """Stands for a kill between two steps."""


def models(tied: bool = True) -> tuple[InlayForCausalLM, InlayForCausalLM]:
    """A random parent of four layers and a child that shares its first layer and its ends."""
    torch.manual_seed(0)
    config = InlayConfig.from_parent(
        LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=2, vocab_size=96, tie_word_embeddings=tied, initializer_range=0.2)
    )  # fmt: skip
    parent = InlayForCausalLM(config).requires_grad_(False).eval()
    child = InlayForCausalLM(config.with_blocks(BLOCKS)).eval()
    own = child.state_dict()
    child.load_state_dict({n: t for n, t in parent.state_dict().items() if n in own and own[n].shape == t.shape}, False)
    return parent, child


def batches(count: int, size: int = 4) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randint(0, 96, (size, 24), generator=random)


def held_out(count: int = 2, size: int = 4) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randint(0, 96, (size, 24), generator=random) for _ in range(count)]


def weights(child: InlayForCausalLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in child.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(settings: GlobalSettings = SETTINGS, **options: Any) -> tuple[GlobalResult, dict[str, Tensor]]:
    parent, child = models()
    result = distill_globally(parent, child, batches(settings.steps), held_out(), settings, **options)
    return result, weights(child)


@pytest.mark.parametrize("tied", [True, False])
def test_the_losses_fall(tied: bool) -> None:
    parent, child = models(tied)
    settings = replace(SETTINGS, steps=60)
    result = distill_globally(parent, child, batches(60), held_out(), settings)
    assert result.status == "trained"
    assert (result.steps, result.tokens) == (60, 60 * 4 * 24)
    first, last = result.curve[0], result.curve[-1]
    for name in ("kl_nats", "cosine", "loss"):
        assert last[name] < 0.8 * first[name]
    assert last["loss"] == pytest.approx(last["kl_nats"] + last["cosine"])


def test_the_first_loss_is_the_definition() -> None:
    parent, child = models()
    (ids_BS,) = batches(1)
    with torch.no_grad():
        parent_layers, _ = parent.forward_hidden(ids_BS)
        child_layers, _ = child.forward_hidden(ids_BS)
        cosine = sum(
            float((1 - functional.cosine_similarity(one, other, dim=-1)).mean())
            for one, other in zip(parent_layers, child_layers, strict=True)
        )
        parent_BSV, child_BSV = (model(ids_BS, use_cache=False).logits.log_softmax(-1) for model in (parent, child))
        kl = float((parent_BSV.exp() * (parent_BSV - child_BSV)).sum(-1).mean())
    result = distill_globally(parent, child, batches(1), held_out(), replace(SETTINGS, steps=1))
    assert result.curve[0]["cosine"] == pytest.approx(3.0 * cosine / len(parent_layers), rel=1e-4)
    assert result.curve[0]["kl_nats"] == pytest.approx(kl, rel=1e-4)


def test_the_parents_own_weights_have_no_loss() -> None:
    parent, _ = models()
    child = InlayForCausalLM(parent.config).eval()
    child.load_state_dict(parent.state_dict())
    result = distill_globally(parent, child, batches(1), held_out(), replace(SETTINGS, steps=1))
    assert result.curve[0]["kl_nats"] == 0.0
    assert result.curve[0]["cosine"] < 1e-5


def test_layers_that_are_computed_twice_keep_less_and_change_no_bit() -> None:
    found = []
    for again in (False, True):
        parent, child = models()
        if again:
            recompute(child.model.layers)
        held = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs, hidden_BSD = child.forward_hidden(next(batches(1)))
        assert len(outputs) == 4
        assert hidden_BSD.requires_grad
        result = distill_globally(parent, child, batches(3), held_out(), replace(SETTINGS, steps=3))
        found.append((held, result, weights(child)))
    (more, expected, expected_weights), (less, result, own_weights) = found
    assert less < more / 2
    assert result == expected
    assert same(own_weights, expected_weights)


def test_parts_of_a_batch_add_up_to_it() -> None:
    whole, whole_weights = run(replace(SETTINGS, steps=3))
    parts, parts_weights = run(replace(SETTINGS, steps=3, micro_batch=3))  # 3 and 1 of 4 sequences
    for one, other in zip(whole.curve, parts.curve, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for name, tensor in whole_weights.items():
        torch.testing.assert_close(tensor, parts_weights[name], rtol=1e-2, atol=1e-3)


def test_a_run_repeats_bit_for_bit() -> None:
    one, one_weights = run()
    other, other_weights = run()
    assert one.curve == other.curve
    assert same(one_weights, other_weights)


@pytest.mark.parametrize("killed_after", [1, 7, 11])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, killed_after: int) -> None:
    expected, expected_weights = run()

    def kill(step: int, steps: int, losses: dict[str, float]) -> None:
        if step == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run(on_step=kill, checkpoint=Checkpoint(tmp_path, every_steps=3))
    told: list[int] = []
    result, resumed_weights = run(
        on_step=lambda step, steps, losses: told.append(step), checkpoint=Checkpoint(tmp_path, every_steps=3)
    )
    assert told[0] == (killed_after - 1) // 3 * 3 + 1
    assert told[-1] == 12
    assert result == expected
    assert same(resumed_weights, expected_weights)


@pytest.mark.parametrize("rate", ["pinned", "found"])
def test_every_judgement_is_told_when_it_is_made(tmp_path: Path, rate: Any) -> None:
    settings = replace(SETTINGS, rate=rate)
    heard: list[list[tuple[int, float | None]]] = []

    def listen(held_out: Sequence[tuple[int, float | None]]) -> None:
        heard.append(list(held_out))

    def kill(step: int, steps: int, losses: dict[str, float]) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        run(settings, on_judged=listen, on_step=kill, checkpoint=Checkpoint(tmp_path / "c", every_steps=1))
    before = heard[-1]
    assert [step for step, _ in before] == [0, 2, 4, 6]
    heard.clear()
    result, _ = run(settings, on_judged=listen, checkpoint=Checkpoint(tmp_path / "c", every_steps=1))
    assert heard[0] == before, "what was judged before a kill is told again"
    assert heard[-1] == result.held_out
    assert [len(each) for each in heard] == [4, 5, 6, 7]


def test_a_run_that_lacked_memory_goes_on_in_smaller_parts(tmp_path: Path) -> None:
    def kill(step: int, steps: int, losses: dict[str, float]) -> None:
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        run(on_step=kill, checkpoint=Checkpoint(tmp_path, every_steps=3))
    expected, _ = run()
    result, _ = run(replace(SETTINGS, micro_batch=2), checkpoint=Checkpoint(tmp_path))
    assert result.curve[:3] == expected.curve[:3]
    assert result.curve[-1]["loss"] == pytest.approx(expected.curve[-1]["loss"], rel=1e-2)


def test_a_finished_run_does_nothing_again(tmp_path: Path) -> None:
    expected, expected_weights = run(checkpoint=Checkpoint(tmp_path))
    told: list[int] = []
    result, again = run(on_step=lambda step, steps, losses: told.append(step), checkpoint=Checkpoint(tmp_path))
    assert told == []
    assert result == expected
    assert same(again, expected_weights)


def test_checkpoints_are_whole_files_that_are_replaced(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "deep", every_steps=1)
    run(checkpoint=checkpoint)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["training.safetensors"]


def test_a_full_disk_is_told_and_leaves_the_last_state(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(TrainingState({"weight.a": torch.ones(4)}, {"done": 1}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal, the write fails
    try:
        with pytest.raises(OSError, match=r"training.safetensors: cannot write 40000 bytes of training state"):
            checkpoint.save(TrainingState({"weight.a": torch.ones(10_000)}, {"done": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = checkpoint.load()
    assert kept is not None
    assert kept.progress == {"done": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_checkpoints_come_due_by_steps_and_by_time(tmp_path: Path) -> None:
    assert [Checkpoint(tmp_path, every_steps=3, every_seconds=None).due(step) for step in (1, 3, 4, 6)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert Checkpoint(tmp_path, every_seconds=0.0).due(1)
    assert not Checkpoint(tmp_path, every_seconds=3600.0).due(1)


def test_what_costs_much_comes_due_later(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every_seconds=0.0)

    def slow() -> TrainingState:
        time.sleep(0.2)  # a fiftieth of the training is 10 s
        return TrainingState({"weight.a": torch.ones(4)}, {"done": 1})

    checkpoint.keep(1, False, slow)
    assert checkpoint.path.exists()
    assert not checkpoint.due(2)


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    run(checkpoint=checkpoint)
    with pytest.raises(ValueError, match="written with other settings"):
        run(replace(SETTINGS, learning_rate=1e-4), checkpoint=checkpoint)
    parent, _ = models()
    other = InlayForCausalLM(parent.config).eval()
    with pytest.raises(ValueError, match="a child with other weights"):
        distill_globally(parent, other, batches(12), held_out(), SETTINGS, checkpoint=checkpoint)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged checkpoint"):
        run(checkpoint=checkpoint)


class Glitch:
    """A parent whose hidden states are not a number in some of its calls."""

    def __init__(self, parent: InlayForCausalLM, calls: set[int]) -> None:
        self.parent, self.glitches, self.calls = parent, calls, 0
        self.head_VD = parent.head_VD

    def forward_hidden(self, ids_BS: Tensor) -> tuple[list[Tensor], Tensor]:
        self.calls += 1
        layers, hidden = self.parent.forward_hidden(ids_BS)
        return layers, hidden * float("nan") if self.calls in self.glitches else hidden


def test_a_child_that_was_never_finite_fails_as_it_came() -> None:
    parent, child = models()
    with torch.no_grad():
        child.model.layers[3].mlp.down_proj.weight.fill_(float("inf"))
    before = weights(child)
    result = distill_globally(parent, child, batches(12), held_out(), SETTINGS)
    assert result.status == "failed"
    assert result.reason == ("loss was not finite at step 2 of 12, after going back once to a learning rate of 0.001")
    assert result.steps == 2
    assert result.curve == [{}, {}]
    assert result.start_kl_nats is None
    assert not result.improved
    assert same(weights(child), before)


def test_a_single_bad_step_is_survived_at_a_third_of_the_rate() -> None:
    parent, child = models()
    result = distill_globally(Glitch(parent, {5}), child, batches(40), held_out(), replace(SETTINGS, steps=40))
    assert (result.status, result.reason) == ("trained", "")
    assert result.learning_rate == pytest.approx(1e-3)
    assert [step for step, losses in enumerate(result.curve) if not losses] == [2]  # two calls judged the start
    assert all(tensor.isfinite().all() for tensor in child.state_dict().values())
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    json.dumps(asdict(result), allow_nan=False)


def test_a_training_that_ends_early_keeps_the_best_that_it_saw() -> None:
    parent, child = models()
    result = distill_globally(Glitch(parent, {21, 22}), child, batches(40), held_out(), replace(SETTINGS, steps=40))
    assert result.status == "trained"
    assert result.reason.startswith("loss was not finite at step 20 of 40")
    assert (result.steps, result.best_step) == (20, 14)
    assert result.improved
    assert Judge(parent, child, held_out(), SETTINGS, Ranks()).kl_nats() == result.best_kl_nats


def test_a_training_that_only_harms_leaves_the_child_as_it_came() -> None:
    """At this rate the KL stays above 15, whatever the last bits are; at ten it may leave the finite numbers, and a
    retry at a third come back."""
    parent, child = models()
    before = weights(child)
    result = distill_globally(parent, child, batches(12), held_out(), replace(SETTINGS, learning_rate=3.0))
    assert result.status == "trained"
    assert not result.improved
    assert result.best_step == 0
    assert result.best_kl_nats == result.start_kl_nats == result.held_out[0][1]
    assert [step for step, _ in result.held_out] == [0, 2, 4, 6, 8, 10, 12]
    assert all(kl is None or kl > result.start_kl_nats for _, kl in result.held_out[1:])
    assert same(weights(child), before)


def test_what_is_kept_is_the_state_of_the_least_held_out_kl() -> None:
    parent, child = models()
    settings = replace(SETTINGS, steps=60)
    result = distill_globally(parent, child, batches(60), held_out(), settings)
    assert result.improved
    assert result.best_kl_nats == min(kl for _, kl in result.held_out if kl is not None)
    assert Judge(parent, child, held_out(), settings, Ranks()).kl_nats() == result.best_kl_nats
    with torch.no_grad():
        kls = [
            (p := parent(ids_BS, use_cache=False).logits.log_softmax(-1)).exp()
            * (p - child(ids_BS, use_cache=False).logits.log_softmax(-1))
            for ids_BS in held_out()
        ]
    assert result.best_kl_nats == pytest.approx(float(torch.stack(kls).sum(-1).mean()), rel=1e-4)


@pytest.mark.parametrize("kept_bytes", [0, 10_000, 1 << 20])
def test_a_judge_says_the_same_whatever_it_keeps(kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = models()
    expected = Judge(parent, child, held_out(), SETTINGS, Ranks()).kl_nats()
    monkeypatch.setattr(judge_module, "KEPT_BYTES", kept_bytes)
    forwards: list[int] = []
    own_forward = parent.forward_hidden
    monkeypatch.setattr(parent, "forward_hidden", lambda ids: (forwards.append(1), own_forward(ids))[1])
    judge = Judge(parent, child, held_out(), replace(SETTINGS, micro_batch=1), Ranks())
    first = judge.kl_nats()
    told = len(forwards)
    assert judge.kl_nats() == first == pytest.approx(expected, rel=1e-6)
    assert (len(forwards) == told) == (kept_bytes == 1 << 20)
    assert (len(forwards) == 2 * told) == (kept_bytes == 0)


def test_no_held_out_text_is_refused() -> None:
    parent, child = models()
    with pytest.raises(ValueError, match="no batch is held out"):
        distill_globally(parent, child, batches(12), [], SETTINGS)


@pytest.mark.parametrize("killed_after", [1, 9])
@pytest.mark.parametrize("change", [{"learning_rate": 0.3, "rate": "found"}, {"learning_rate": 10.0}])
def test_a_killed_run_keeps_its_best_and_the_rate_that_it_found(
    tmp_path: Path, killed_after: int, change: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, steps=24, **change)
    expected, expected_weights = run(settings)
    assert bool(expected.trials) == ("rate" in change)
    assert expected.improved == ("rate" in change)

    def kill(step: int, steps: int, losses: dict[str, float]) -> None:
        if step == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run(settings, on_step=kill, checkpoint=Checkpoint(tmp_path, every_steps=4))
    tried: list[int] = []
    result, resumed_weights = run(
        settings, on_trial=lambda done, steps: tried.append(done), checkpoint=Checkpoint(tmp_path, every_steps=4)
    )
    assert tried == []
    assert result == expected
    assert same(resumed_weights, expected_weights)


def partly_trained() -> tuple[InlayForCausalLM, InlayForCausalLM, set[str]]:
    """A parent, a child of which only two subblocks require gradients, and the names of these tensors."""
    parent, child = models()
    child.requires_grad_(False)
    trained = {
        name for name in child.state_dict() if name.startswith(("model.layers.2.mlp", "model.layers.3.self_attn"))
    }
    for name in trained:
        child.get_parameter(name).requires_grad_(True)
    return parent, child, trained


def test_what_requires_no_gradient_stays_and_takes_no_memory(tmp_path: Path) -> None:
    parent, child, trained = partly_trained()
    before = weights(child)
    result = distill_globally(
        parent, child, batches(60), held_out(), replace(SETTINGS, steps=60), checkpoint=Checkpoint(tmp_path)
    )
    assert result.improved
    assert {name for name, tensor in weights(child).items() if not torch.equal(tensor, before[name])} == trained
    held = load_file(tmp_path / "training.safetensors")
    moments = {name.partition(".")[2] for name in held if name.startswith("exp_avg_sq.")}
    assert moments == trained
    assert sum(held[name].nbytes for name in held if name.startswith("exp_avg")) == 2 * sum(
        before[name].nbytes for name in trained
    )


def test_a_killed_run_of_a_part_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trained(**options: Any) -> tuple[GlobalResult, dict[str, Tensor]]:
        parent, child, _ = partly_trained()
        return distill_globally(parent, child, batches(12), held_out(), SETTINGS, **options), weights(child)

    def kill(step: int, steps: int, losses: dict[str, float]) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        trained(on_step=kill, checkpoint=Checkpoint(tmp_path, every_steps=3))
    expected, expected_weights = trained()
    result, resumed_weights = trained(checkpoint=Checkpoint(tmp_path, every_steps=3))
    assert result == expected
    assert same(resumed_weights, expected_weights)


def test_a_child_with_nothing_to_train_is_only_judged() -> None:
    parent, child = models()
    before = weights(child)
    result = distill_globally(parent, child.requires_grad_(False), batches(12), held_out(), SETTINGS)
    assert (result.status, result.reason, result.steps) == ("trained", "nothing of it is trained", 0)
    assert result.best_kl_nats == Judge(parent, child, held_out(), SETTINGS, Ranks()).kl_nats()
    assert not result.improved
    assert same(weights(child), before)


def test_too_few_batches_are_named() -> None:
    parent, child = models()
    with pytest.raises(ValueError, match="5 batches came but 12 steps were wanted"):
        distill_globally(parent, child, batches(5), held_out(), SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "`steps` is 0"),
        ({"micro_batch": 0}, "`micro_batch` 0"),
        ({"learning_rate": -1.0}, "`learning_rate` is -1.0"),
        ({"clip": 0.0}, "`clip` 0.0"),
        ({"cosine": -1.0}, "`cosine` -1.0"),
        ({"warmup": 2.0}, "`warmup` is 2.0"),
    ],
)
def test_settings_out_of_bounds_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobalSettings(**{"steps": 3, **change})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_child_computes_in_bfloat16_where_its_parent_does_in_16_bits(dtype: torch.dtype) -> None:
    parent, child = models()
    parent = parent.to(dtype)
    types: set[torch.dtype] = set()
    child.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, given, output: types.add(output.dtype))
    result = distill_globally(parent, child, batches(60), held_out(), replace(SETTINGS, steps=60))
    assert types == {torch.bfloat16}
    assert {tensor.dtype for tensor in child.parameters()} == {torch.float32}
    assert result.curve[-1]["loss"] < 0.8 * result.curve[0]["loss"]
