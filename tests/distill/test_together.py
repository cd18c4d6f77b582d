"""Children that are trained together are what each is when trained alone, and their parent runs once for all."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay.distill.checkpoint import Checkpoint
from inlay.distill.globally import GlobalResult, distill_globally, training
from inlay.distill.settings import GlobalSettings
from inlay.distill.together import distill_together
from inlay.nas.modeling import InlayForCausalLM


def small() -> Any:
    """The models and batches of test_globally.py."""
    spec = importlib.util.spec_from_file_location("small_together", Path(__file__).with_name("test_globally.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_together"] = module
    spec.loader.exec_module(module)
    return module


SMALL = small()
SETTINGS = GlobalSettings(steps=24, learning_rate=3e-3, rate="found", micro_batch=2)
HARMED = 2


class Counted:
    """A parent that counts how often it runs."""

    def __init__(self, parent: InlayForCausalLM) -> None:
        self.parent, self.head_VD, self.calls = parent, parent.head_VD, 0

    def forward_hidden(self, ids_BS: Tensor) -> tuple[list[Tensor], Tensor]:
        self.calls += 1
        found: tuple[list[Tensor], Tensor] = self.parent.forward_hidden(ids_BS)
        return found


def children() -> tuple[Counted, list[InlayForCausalLM]]:
    """A parent and three children, of which the last tries more rates than the others."""
    parent, child = SMALL.models()
    others = [
        InlayForCausalLM(parent.config.with_blocks(blocks)).eval() for blocks in (SMALL.BLOCKS[::-1], SMALL.BLOCKS)
    ]
    for other in others:
        own = other.state_dict()
        state = {n: t for n, t in parent.state_dict().items() if n in own and own[n].shape == t.shape}
        other.load_state_dict(state, strict=False)
    return Counted(parent), [child, *others]


def settings_for(number: int) -> GlobalSettings:
    return replace(SETTINGS, learning_rate=1.0) if number == HARMED else SETTINGS


def together(folder: Path | None = None, killed_at: int | None = None) -> tuple[int, list[GlobalResult], list[Any]]:
    parent, models = children()

    def on_step(step: int, steps: int, losses: Any) -> None:
        if step == killed_at:
            raise SMALL.Killed

    def begin(number: int) -> Any:
        return lambda shared, seen: training(
            shared, models[number], SMALL.batches(24), SMALL.held_out(), settings_for(number),
            on_step=on_step if number == 1 else None,
            checkpoint=None if folder is None else Checkpoint(folder / str(number), every_steps=3),
            seen=seen,
        )  # fmt: skip

    results = distill_together(parent, [begin(number) for number in range(3)], parts=2)
    return parent.calls, results, [SMALL.weights(model) for model in models]


@pytest.fixture(scope="module")
def alone() -> tuple[int, list[GlobalResult], list[Any]]:
    """Each by itself: how often the parent ran, the results, the weights."""
    parent, models = children()
    results = [
        distill_globally(parent, model, SMALL.batches(24), SMALL.held_out(), settings_for(number))
        for number, model in enumerate(models)
    ]
    return parent.calls, results, [SMALL.weights(model) for model in models]


def test_each_is_what_it_is_alone_bit_for_bit(alone: Any) -> None:
    calls, results, weights = together()
    assert results == alone[1]
    assert all(map(SMALL.same, weights, alone[2]))
    assert len(results[HARMED].trials) > 2, "it was to leave the others' steps"
    assert len(results[0].trials) == 2
    # 2 parts of 24 batches and of 2 that judge; the third child's further trials, and its start anew, are its own.
    shared = 2 * (24 + 2)
    tried = 2 * 4 * sum(len(result.trials) for result in results)
    assert shared < calls < shared + tried
    assert calls < 0.6 * alone[0]


def test_killed_trainings_go_on_together(tmp_path: Path, alone: Any) -> None:
    with pytest.raises(SMALL.Killed):
        together(tmp_path, killed_at=14)
    assert all((tmp_path / str(number) / "training.safetensors").exists() for number in range(3))
    _, results, weights = together(tmp_path)
    assert results == alone[1]
    assert all(map(SMALL.same, weights, alone[2]))


def test_a_child_with_nothing_to_train_is_judged_beside_the_others() -> None:
    parent, models = children()
    models[1].requires_grad_(False)
    begin = [
        lambda shared, seen, model=model: training(
            shared, model, SMALL.batches(24), SMALL.held_out(), SETTINGS, seen=seen
        )
        for model in models[:2]
    ]
    trained, left = distill_together(parent, begin, parts=2)
    assert trained.improved
    assert (left.steps, left.reason) == (0, "nothing of it is trained")
    assert left.start_kl_nats is not None
    assert torch.isfinite(torch.tensor(left.start_kl_nats))
