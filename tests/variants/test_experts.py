"""Fewer experts, and fewer for each token: which stay, what a layer computes with them, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay.nas.job import Space
from inlay.nas.modeling import build_layer
from inlay.nas.variants import Variant, parameters, parse_variant, space_problems, working_parameters
from inlay.nas.variants.experts import ExpertShares

LAYER = 1


def layer_with(case: Any, label: str) -> Any:
    variant = parse_variant(label)
    state = variant.start(case.parent.shape, LAYER, case.state, case.sums)
    return build_layer(case.parent.config, LAYER, None, variant.entry(case.parent.shape, LAYER), state, torch.float32)


def test_shares_are_what_tokens_take(of_experts: Any) -> None:
    """Counted once more, token by token."""
    layer = of_experts.layer
    with torch.no_grad():
        middle_BSD = of_experts.hidden_BSD + layer.attention_update(of_experts.hidden_BSD, of_experts.context)
        logits_NE = layer.mlp.gate(layer.post_attention_layernorm(middle_BSD).flatten(0, 1))
    wanted_E = torch.zeros(logits_NE.shape[1])
    for probability_E in logits_NE.softmax(-1):
        best = probability_E.argsort(descending=True)[:2]
        whole = probability_E[best].sum() if layer.mlp.shares_of_taken else 1.0
        wanted_E[best] += probability_E[best] / whole
    torch.testing.assert_close(of_experts.sums.of(ExpertShares())["e"], wanted_E)


@pytest.mark.parametrize("count", [2, 3])
def test_those_that_take_most_stay_and_others_are_not_asked(of_experts: Any, count: int) -> None:
    shares_E = of_experts.sums.of(ExpertShares())["e"]
    kept = sorted(shares_E.argsort(descending=True)[:count].tolist())
    cut, own = layer_with(of_experts, f"ffn:experts={count}"), of_experts.layer
    assert cut.mlp.gate.weight.equal(own.mlp.gate.weight[kept])
    for number, old in enumerate(kept):
        theirs = own.mlp.experts[old].state_dict()
        assert all(tensor.equal(theirs[name]) for name, tensor in cut.mlp.experts[number].state_dict().items())
    # A router that never gives the others computes the same.
    with torch.no_grad():
        hidden_BSD = torch.randn(2, 7, of_experts.parent.shape.hidden)
        masked = layer_with(of_experts, "ffn:parent")
        masked.mlp.gate.register_forward_hook(
            lambda module, inputs, logits_NE: logits_NE.index_fill(
                1, torch.tensor(sorted(set(range(len(shares_E))) - set(kept))), -torch.inf
            )
        )
        torch.testing.assert_close(cut.ffn_update(hidden_BSD), masked.ffn_update(hidden_BSD))


def test_a_token_takes_fewer(of_experts: Any) -> None:
    layer = layer_with(of_experts, "ffn:active=1")
    with torch.no_grad():
        hidden_ND = torch.randn(5, of_experts.parent.shape.hidden)
        expert_NK, share_NK = layer.mlp.taken(layer.mlp.gate(hidden_ND))
    assert expert_NK.shape == share_NK.shape == (5, 1)


def test_experts_without_a_token_have_gradients_of_zeros(of_experts: Any) -> None:
    """Ranks add up the gradients of the same tensors, whatever tokens they have."""
    layer = layer_with(of_experts, "ffn:active=1")
    layer.requires_grad_()
    layer.ffn_update(torch.randn(1, 1, of_experts.parent.shape.hidden)).sum().backward()
    gradients = [parameter.grad for parameter in layer.mlp.experts.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) == 3, "of one expert's matrices"


def test_operations_are_those_of_the_experts_taken(of_experts: Any) -> None:
    shape = of_experts.parent.shape
    entry = shape.parent_entry(LAYER, "ffn")
    idle = parameters(entry, "ffn", shape) - working_parameters(entry, "ffn", shape)
    assert idle == (entry["experts"] - entry["active"]) * 3 * entry["expert_width"] * shape.hidden
    dense = Variant("attention", "parent").entry(shape, LAYER)
    assert parameters(dense, "attention", shape) == working_parameters(dense, "attention", shape)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"experts": 1}, "1 is fewer than the 2 experts that each token takes; give at least 2, or both numbers: "
         "{active: 1, experts: 1}"),
        ({"experts": 5}, "5 is above the parent's 4; give a smaller number"),
        ({"active": 3}, "3 is above the parent's 2; give a smaller number"),
        ({"active": 2, "experts": 1}, "experts 1 is fewer than the 2 experts that each token takes"),
        ({"width": 0.5}, "the parent's ffn has no channels; leave width out"),
    ],
)  # fmt: skip
def test_what_cannot_be(of_experts: Any, item: dict[str, Any], sentence: str) -> None:
    (problem,) = space_problems(Space(ffn=[item]), of_experts.parent.shape)
    assert sentence in str(problem)


def test_a_dense_parent_has_none(llama: Any) -> None:
    problems = space_problems(Space(ffn=[{"experts": 2}, {"active": 1}]), llama.parent.shape)
    assert [str(problem) for problem in problems] == [
        "space.ffn[0].experts: 2 is not possible: the parent's ffn has no experts; leave experts out",
        "space.ffn[1].active: 1 is not possible: the parent's ffn has no experts; leave active out",
    ]
