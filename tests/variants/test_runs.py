"""Runs of neighbouring layers as one choice: what a job may say, where they are offered, and how they start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from inlay.nas.errors import UserError
from inlay.nas.job import Job, Space
from inlay.nas.modeling import build_layer
from inlay.nas.modeling.window_inlay import parent_attention
from inlay.nas.variants import Variant, parse_variant, space_problems, variants_of
from inlay.nas.variants.run import side_by_side

FFN = {"kind": "gated", "width": 48}


def labels_of(space: Space, shape: Any, layer: int) -> list[str]:
    return [variant.label for variant in variants_of(space, shape, layer) if variant.run]


def test_a_run_is_offered_where_its_layers_are(llama) -> None:
    shape, space = llama.parent.shape, Space(layers=[{"merge": 2}, {"fuse": 3}])
    merged, fused = (["attention:merge=2", "ffn:merge=2"], ["attention:fuse=3", "ffn:fuse=3"])
    assert labels_of(space, shape, 0) == [merged[0], fused[0], merged[1], fused[1]]
    assert labels_of(space, shape, 1) == merged
    assert labels_of(space, shape, 2) == []
    assert parse_variant("ffn:fuse=3").entry(shape, 0)["width"] == 3 * shape.parent_entry(0, "ffn")["width"]


def test_a_run_is_of_layers_that_are_alike(llama) -> None:
    blocks = tuple({"attention": parent_attention(2, window), "ffn": FFN} for window in (None, None, 16))
    shape = replace(llama.parent.shape, blocks=blocks)
    assert [labels_of(Space(layers=[{"merge": 2}]), shape, layer) for layer in range(3)] == [
        ["attention:merge=2", "ffn:merge=2"],
        [],
        [],
    ]
    (problem,) = space_problems(Space(layers=[{"merge": 3}]), shape)
    assert str(problem) == (
        "space.layers[0].merge: 3 is not possible: layers 0 and 2 of the parent are unlike, and a run is of layers of "
        "one shape; give fewer, or leave it out"
    )


def test_a_run_that_is_longer_than_the_parent(llama) -> None:
    (problem,) = space_problems(Space(layers=[{"fuse": 4}]), llama.parent.shape)
    assert str(problem) == ("space.layers[0].fuse: 4 is not possible at layer 0: the parent has 3 layers; give fewer")


def test_an_ffn_without_channels_is_not_fused(llama) -> None:
    blocks = tuple({"attention": parent_attention(2, None), "ffn": {"kind": "linear"}} for _ in range(2))
    (problem,) = space_problems(Space(layers=[{"fuse": 2}]), replace(llama.parent.shape, blocks=blocks))
    assert "or an ffn without channels; leave it out" in str(problem)


def test_both_subblocks_of_a_run_are_stored_alike(llama) -> None:
    space = Space(layers=[{"merge": 2}], formats=["q8_0"])
    own = [variant for variant in variants_of(space, llama.parent.shape, 0) if variant.run]
    assert {variant.block for variant in own} == {
        ("attention:merge=2", "ffn:merge=2"),
        ("attention:merge=2@q8_0", "ffn:merge=2@q8_0"),
    }
    nothing = ("attention:no_op", "ffn:no_op")
    assert [tuple(map(str, each)) for each in own[-1].run] == [("attention:merge=2@q8_0", "ffn:merge=2@q8_0"), nothing]


def test_a_fused_ffn_begins_as_the_sum_of_all(case) -> None:
    """Before its columns are fitted it adds what the two of the parent add to the same state, but for rounding."""
    shape, config = case.parent.shape, case.parent.config
    dtype = getattr(torch, shape.dtype)
    states = [case.state, case.parent.layer_state(2)]
    own = Variant("ffn", "parent")
    together = side_by_side([own.start(shape, 1, state) for state in states])
    wide = build_layer(config, 1, None, Variant("ffn", "fuse", 2).entry(shape, 1), together, dtype)
    narrow = [build_layer(config, 1, None, own.entry(shape, 1), own.start(shape, 1, state), dtype) for state in states]
    together_BSD = sum(layer.ffn_update(case.hidden_BSD) for layer in narrow)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(wide.ffn_update(case.hidden_BSD), together_BSD, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["merge", "fuse"])
def test_the_ffn_is_fitted_to_all_that_the_layers_add(llama, kind) -> None:
    """Of the text that it was fitted on its error is below that of what it was made of."""
    shape, config, variant = llama.parent.shape, llama.parent.config, Variant("ffn", kind, 2)
    entries = [shape.parent_entry(1, slot) for slot in ("attention", "ffn")]
    first, second = (build_layer(config, at, *entries, llama.parent.layer_state(at), torch.float32) for at in (1, 2))
    middle_BSD = llama.hidden_BSD + first.attention_update(llama.hidden_BSD, llama.context)
    wanted_BSD = second(first(llama.hidden_BSD, llama.context), llama.context) - middle_BSD
    started = variant.start(shape, 1, llama.given(variant), llama.sums)
    layer = build_layer(config, 1, None, variant.entry(shape, 1), started, torch.float32)

    def error(given_BSD: torch.Tensor) -> float:
        return float((given_BSD - wanted_BSD).square().sum() / wanted_BSD.square().sum())

    assert error(layer.ffn_update(middle_BSD)) < error(first.ffn_update(middle_BSD)) - 0.01
    if kind == "fuse":
        both_BSD = first.ffn_update(middle_BSD) + second.ffn_update(middle_BSD)
        assert error(layer.ffn_update(middle_BSD)) < error(both_BSD)


def test_a_start_without_the_layers_behind(llama) -> None:
    with pytest.raises(ValueError, match="starts from all of them"):
        Variant("ffn", "merge", 2).start(llama.parent.shape, 1, llama.state, llama.sums)


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([{"merge": 1}], "space.layers[0].merge: 1 is no run of layers; write 2 or more"),
        (["merge"], "is no layers alternative"),
        ([{"width": 8}], "`width` belongs to ffn, not layers; move it to `space.ffn`"),
        ([{"merge": 2}, {"merge": 2}], "is there twice; leave one out"),
        (2, "is not a list; write for example [merge: 2, fuse: 2]"),
    ],
)
def test_what_a_job_says_wrong(items: Any, told: str) -> None:
    with pytest.raises(UserError) as raised:
        Job.from_dict({"space": {"layers": items}})
    assert told in str(raised.value)


def test_a_run_is_written_for_layers_not_for_a_subblock() -> None:
    with pytest.raises(UserError, match=r"`merge` belongs to layers, not ffn; move it to `space.layers`"):
        Job.from_dict({"space": {"ffn": [{"merge": 2}]}})
