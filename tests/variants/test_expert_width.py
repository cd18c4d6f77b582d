"""Narrower experts: what they give beside what they gave, what no token says, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay.nas.job import Space
from inlay.nas.modeling import build_layer
from inlay.nas.variants import parse_variant, space_problems
from inlay.nas.variants.expert_width import ExpertGrams
from inlay.nas.variants.experts import ExpertShares
from inlay.nas.variants.statistics import Sums

LAYER = 1


def layer_from(case: Any, label: str, sums: Sums) -> Any:
    variant = parse_variant(label)
    state = variant.start(case.parent.shape, LAYER, case.state, sums)
    return build_layer(case.parent.config, LAYER, None, variant.entry(case.parent.shape, LAYER), state, torch.float32)


def middle(case: Any) -> torch.Tensor:
    """What the ffn of the layer reads, [B, S, D]."""
    middle_BSD: torch.Tensor = case.hidden_BSD + case.layer.attention_update(case.hidden_BSD, case.context)
    return middle_BSD


@torch.no_grad()
def test_they_give_nearly_what_they_gave(of_experts: Any) -> None:
    """Nearer than by the first channels alone, and all channels give the same but for rounding."""
    given_BSD, width = middle(of_experts), of_experts.parent.shape.parent_entry(LAYER, "ffn")["expert_width"]
    theirs_BSD = of_experts.layer.ffn_update(given_BSD)
    whole = layer_from(of_experts, f"ffn:expert_width={width}", of_experts.sums)
    torch.testing.assert_close(whole.ffn_update(given_BSD), theirs_BSD)
    half = layer_from(of_experts, f"ffn:expert_width={width // 2}", of_experts.sums)
    cut = layer_from(of_experts, f"ffn:expert_width={width // 2}", of_experts.sums)
    for ours, own in zip(cut.mlp.experts, of_experts.layer.mlp.experts, strict=True):
        ours.gate_proj.weight.copy_(own.gate_proj.weight[: width // 2])
        ours.up_proj.weight.copy_(own.up_proj.weight[: width // 2])
        ours.down_proj.weight.copy_(own.down_proj.weight[:, : width // 2])
    errors = [float((layer.ffn_update(given_BSD) - theirs_BSD).square().sum()) for layer in (half, cut)]
    assert errors[0] < 0.8 * errors[1]
    assert half.mlp.gate.weight.equal(of_experts.layer.mlp.gate.weight)


@torch.no_grad()
def test_sums_are_of_the_tokens_that_take_an_expert(of_experts: Any) -> None:
    layer, found = of_experts.layer, of_experts.sums.of(ExpertGrams())
    normed_ND = layer.post_attention_layernorm(middle(of_experts)).flatten(0, 1)
    expert_NK, share_NK = layer.mlp.taken(layer.mlp.gate(normed_ND))
    for number, own in enumerate(layer.mlp.experts):
        share_N = torch.where(expert_NK == number, share_NK, 0.0).sum(1)
        channels_NF = own.act_fn(own.gate_proj(normed_ND)) * own.up_proj(normed_ND) * share_N[:, None]
        torch.testing.assert_close(found["hh"][number], channels_NF.T @ channels_NF)
        assert found["n"][number] == (expert_NK == number).sum()


def test_an_expert_that_no_token_takes_has_a_start(of_experts: Any) -> None:
    sums = {name: tensor.clone() for name, tensor in of_experts.sums.tensors.items()}
    for name in ("hh", "n"):
        sums[f"{ExpertGrams().name}.{name}"][0] = 0
    layer = layer_from(of_experts, "ffn:expert_width=8", Sums(of_experts.sums.tokens, sums))
    assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())


def test_of_two_kinds_in_one_slot_each_does_its_part(of_experts: Any) -> None:
    both = layer_from(of_experts, "ffn:expert_width=8+experts=2", of_experts.sums)
    narrow = layer_from(of_experts, "ffn:expert_width=8", of_experts.sums)
    kept = of_experts.sums.of(ExpertShares())["e"].topk(2).indices.sort().values.tolist()
    assert both.mlp.gate.weight.equal(narrow.mlp.gate.weight[kept])
    for ours, old in zip(both.mlp.experts, kept, strict=True):
        assert ours.down_proj.weight.equal(narrow.mlp.experts[old].down_proj.weight)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"expert_width": 10_000}, "space.ffn[0].expert_width: 10000 is above the parent's"),
        ({"active": 1, "expert_width": 10_000}, "expert_width 10000 is above the parent's"),
    ],
)
def test_what_cannot_be(of_experts: Any, item: dict[str, Any], sentence: str) -> None:
    (problem,) = space_problems(Space(ffn=[item]), of_experts.parent.shape)
    assert sentence in str(problem)
    assert str(problem).endswith("give a smaller number")


def test_a_dense_parent_has_none(llama: Any) -> None:
    (problem,) = space_problems(Space(ffn=[{"expert_width": 8}]), llama.parent.shape)
    assert str(problem) == (
        "space.ffn[0].expert_width: 8 is not possible: the parent's ffn has no experts; leave expert_width out"
    )
