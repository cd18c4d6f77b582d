"""What every engine promises a search, run over all of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.nas.engines.engine import Engine, Target
from inlay.nas.engines.registry import ENGINES, format_of
from inlay.nas.engines.talk import Trained
from inlay.nas.engines.timing import Workload
from inlay.nas.families import layer_prefix, open_parent
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.variants.storage import Storage

WORKLOAD = Workload(batch_size=2, prefill=8, generate=4, threads=1)
HALF = {"kind": "gated", "width": 64}
WHOLE = {"kind": "gated", "width": 512}


ELSEWHERE = {"vllm": "INLAY_VLLM_PYTHON"}
"""Engines that are not among what the tests install, by the variable that names their interpreter; all are slow."""


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in ELSEWHERE else ()) for name in ENGINES])
def running(request: pytest.FixtureRequest) -> Engine:
    """One that is installed."""
    variable = ELSEWHERE.get(request.param)
    if variable is not None and not os.environ.get(variable):
        pytest.skip(f"{variable} names no interpreter that has {request.param} (docs/{request.param}.md)")
    return ENGINES[request.param]


@pytest.fixture
def parent(tiny_parent: Callable[..., Path]) -> Any:
    return open_parent(tiny_parent("llama", hidden_size=128, intermediate_size=512))


def target(engine: Engine, parent: Any) -> Target:
    python = os.environ.get(ELSEWHERE.get(engine.name, ""))
    return Target("cpu", "float32", format_of(engine.name, "auto", parent.shape), python)


def storage_here(engine: Engine, parent: Any) -> Storage:
    return engine.storage(format_of(engine.name, "auto", parent.shape), "cpu")


def test_its_formats_hold_the_parent(engine: Engine, parent: Any) -> None:
    for form in engine.formats:
        assert engine.model_problem(parent.shape, form, "cpu") is None
        storage = engine.storage(form, "cpu")
        assert storage.model(parent.shape, parent.shape.blocks) > storage.ends(parent.shape) > 0


def test_a_model_has_the_bytes_of_its_parts(engine: Engine, parent: Any) -> None:
    shape, storage = parent.shape, storage_here(engine, parent)
    parts = sum(storage.weights(entry, slot, shape) for block in shape.blocks for slot, entry in block.items())
    assert storage.model(shape, shape.blocks) == storage.ends(shape) + parts
    nothing = {"kind": "no_op"}
    assert storage.weights(nothing, "ffn", shape) == storage.kv(nothing, shape, 1, 100) == 0
    own = shape.parent_entry(0, "attention")
    assert storage.kv(own, shape, 4, 300) == 4 * storage.kv(own, shape, 1, 300) > storage.kv(own, shape, 1, 100)


def test_it_says_where_its_times_are_from(running: Engine, parent: Any) -> None:
    said = running.describe(target(running, parent))
    assert said["device"]
    assert len(said) > 1


def test_subblocks_have_times_of_their_own(running: Engine, parent: Any) -> None:
    own = parent.shape.parent_entry(0, "attention")
    subblocks = {"attention": ("attention", own), "half": ("ffn", HALF), "whole": ("ffn", WHOLE)}
    skeletons = running.skeletons(parent.config, subblocks)
    assert set(skeletons.models) == set(subblocks)
    assert set(skeletons.terms) == {*subblocks, "ends"}
    models = {**skeletons.references, **skeletons.models}
    shares: list[float] = []
    rounds = running.rounds(models, WORKLOAD, target(running, parent), shares.append).rounds
    assert shares[-1] == 1
    assert {len(each) for each in rounds.values()} == {len(rounds["half"])}
    for prefill, decode in (pair for each in rounds.values() for pair in each):
        assert prefill > 0
        assert decode > 0
    assert sum(p for p, _ in rounds["whole"]) > sum(p for p, _ in rounds["half"])


def test_models_are_timed_one_at_a_time_where_memory_is_short(running: Engine, parent: Any) -> None:
    small = parent.config.with_blocks([{"attention": parent.shape.parent_entry(0, "attention"), "ffn": HALF}])
    models = {"parent": parent.config, "small": small}
    rounds = running.rounds(models, WORKLOAD, target(running, parent), lambda share: None, together=False).rounds
    assert set(rounds) == set(models)


def test_models_continue_a_text_in_turns(running: Engine, parent: Any, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(parent.ends_state())
    for layer in range(parent.shape.num_layers):
        state |= {layer_prefix(layer) + name: tensor for name, tensor in parent.layer_state(layer).items()}
    blocks = list(parent.shape.blocks)
    short = parent.config.with_blocks(
        [blocks[0], {"attention": {"kind": "no_op"}, "ffn": {"kind": "no_op"}}, blocks[2]]
    )
    left_out = {name: tensor for name, tensor in state.items() if not name.startswith(layer_prefix(1))}
    models = {
        "parent": Trained("a", parent.config, parent.folder, state),
        "short": Trained("b", short, parent.folder, left_out),
    }
    here = dataclasses.replace(
        target(running, parent), format="f32" if "f32" in running.formats else running.formats[0]
    )
    prompt = [1, 50, 60, 70]
    with running.talk(models, here, threads=1, kept=tmp_path / "kept") as talk:
        found = talk.continuations(prompt, 20, stops=())
        for name, own in found.items():
            assert list(own.ids) == greedy_tokens(models[name], prompt, 20), name
            assert not own.stopped
            assert own.prefill_ns > 0
            assert own.decode_ns > 0
        assert found["parent"].ids != found["short"].ids
        ended = talk.continuations(prompt, 20, stops={found["parent"].ids[2]})["parent"]
        place = found["parent"].ids.index(found["parent"].ids[2])
        assert (ended.ids, ended.stopped) == (found["parent"].ids[:place], True)
        assert {name: own.ids for name, own in talk.continuations(prompt, 20, stops=()).items()} == {
            name: own.ids for name, own in found.items()
        }


def greedy_tokens(model: Trained, prompt: list[int], count: int) -> list[int]:
    """By whole forwards, without a cache."""
    whole: Any = InlayForCausalLM(model.config)
    whole.load_state_dict(dict(model.tensors), strict=False)
    whole.eval().tie_weights()
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(whole(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_kind_that_nobody_knows_is_told(engine: Engine, parent: Any) -> None:
    strange = dataclasses.replace(parent.shape, family="unheard")
    own = parent.shape.parent_entry(0, "ffn")
    assert engine.problem(own, "ffn", parent.shape, engine.formats[0]) is None
    if engine.has_python:
        assert "unheard" in str(engine.model_problem(strange, engine.formats[0], "cpu"))
