"""The KL of next-token distributions against its dense definition: values, gradients, memory, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inlay.kernels import compare_next_token, kl_loss

N, D, V = 37, 8, 101


def pair(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parent hidden, child hidden, parent head, child head."""
    random = torch.Generator().manual_seed(seed)
    parent_ND = torch.randn(N, D, generator=random, dtype=dtype)
    child_ND = parent_ND + 0.3 * torch.randn(N, D, generator=random, dtype=dtype)
    head_VD = torch.randn(V, D, generator=random, dtype=dtype)
    child_head_VD = head_VD + 0.1 * torch.randn(V, D, generator=random, dtype=dtype)
    return parent_ND, child_ND, head_VD, child_head_VD


def dense_kl_N(parent_ND: Tensor, child_ND: Tensor, head_VD: Tensor, child_head_VD: Tensor) -> Tensor:
    parent_NV, child_NV = (parent_ND @ head_VD.T).log_softmax(-1), (child_ND @ child_head_VD.T).log_softmax(-1)
    return (parent_NV.exp() * (parent_NV - child_NV)).sum(-1)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest float32 tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("chunk", [None, 1, 7, N, 1000])
def test_value_and_gradients_equal_the_dense_definition(chunk: int | None) -> None:
    parent_ND, child_ND, head_VD, child_head_VD = pair()
    inputs = (child_ND.requires_grad_(), child_head_VD.requires_grad_())
    ours = kl_loss(parent_ND, child_ND, head_VD, child_head_VD, chunk)
    dense = dense_kl_N(parent_ND, child_ND, head_VD, child_head_VD).mean()
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(3.0 * ours, inputs), torch.autograd.grad(3.0 * dense, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-14)


def test_gradients_pass_a_numerical_check() -> None:
    parent_ND, child_ND, head_VD, child_head_VD = pair()
    torch.autograd.gradcheck(
        lambda hidden, head: kl_loss(parent_ND[:5], hidden, head_VD, head, 2),
        (child_ND[:5].clone().requires_grad_(), child_head_VD.clone().requires_grad_()),
    )


def test_only_wanted_gradients_are_formed() -> None:
    parent_ND, child_ND, head_VD, _ = pair()
    child_ND.requires_grad_()
    kl_loss(parent_ND, child_ND, head_VD, head_VD).backward()
    assert child_ND.grad is not None
    assert head_VD.grad is None


def test_one_head_for_both_gets_the_gradient_of_the_child_alone() -> None:
    parent_ND, child_ND, head_VD, _ = pair()
    tied_VD = head_VD.clone().requires_grad_()
    kl_loss(parent_ND, child_ND, tied_VD.detach(), tied_VD).backward()
    other_VD = head_VD.clone().requires_grad_()
    dense_kl_N(parent_ND, child_ND, head_VD, other_VD).mean().backward()
    torch.testing.assert_close(tied_VD.grad, other_VD.grad, rtol=1e-9, atol=1e-14)


def test_logits_of_all_tokens_are_never_held() -> None:
    num_tokens, vocabulary, chunk = 512, 999, 16
    parent_ND, child_ND = torch.randn(num_tokens, D), torch.randn(num_tokens, D, requires_grad=True)
    head_VD = torch.randn(vocabulary, D, requires_grad=True)
    with LargestTensor() as largest:
        kl_loss(parent_ND, child_ND, head_VD, head_VD, chunk).backward()
        compare_next_token(parent_ND, [child_ND], head_VD, torch.zeros(num_tokens, dtype=torch.long), chunk=chunk)
    assert largest.elements <= chunk * vocabulary
    assert largest.elements < num_tokens * vocabulary / 16


def test_equal_hidden_states_give_exactly_zero() -> None:
    parent_ND, _, head_VD, _ = pair(dtype=torch.float32)
    assert float(kl_loss(parent_ND, parent_ND.clone(), head_VD, head_VD)) == 0.0
    compared = compare_next_token(parent_ND, [parent_ND.clone()], head_VD, torch.zeros(N, dtype=torch.long))
    assert compared.kl.abs().max() == 0.0
    assert compared.agree.all()
    torch.testing.assert_close(compared.child_nll[0], compared.parent_nll, rtol=0, atol=0)


def test_small_differences_keep_their_digits_in_float32() -> None:
    parent_ND, child_ND, head_VD, _ = pair()
    near_ND = parent_ND + 1e-2 * (child_ND - parent_ND)
    exact = float(dense_kl_N(parent_ND, near_ND, head_VD, head_VD).mean())
    single = float(kl_loss(parent_ND.float(), near_ND.float(), head_VD.float(), head_VD.float()))
    assert single == pytest.approx(exact, rel=2e-3)


def test_far_apart_models_do_not_overflow() -> None:
    parent_ND, child_ND, head_VD, _ = pair()
    far_ND = 60.0 * child_ND
    exact = float(dense_kl_N(parent_ND, far_ND, head_VD, head_VD).mean())
    assert float(kl_loss(parent_ND.float(), far_ND.float(), head_VD.float(), head_VD.float())) == pytest.approx(
        exact, rel=1e-4
    )


NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_narrow_models_are_not_rounded(dtype: torch.dtype, autocast: bool) -> None:
    parent_ND, child_ND, head_VD, _ = (tensor.to(dtype) for tensor in pair())
    near_ND = (parent_ND.double() + 0.02 * (child_ND.double() - parent_ND.double())).to(dtype)
    given = (near_ND.requires_grad_(), head_VD.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours = kl_loss(parent_ND, given[0], head_VD, given[1])
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in given)
    dense = dense_kl_N(parent_ND.double(), exact[0], head_VD.double(), exact[1]).mean()
    assert ours.dtype == torch.float32
    assert float(dense.detach()) < 3e-3
    assert float(ours.detach()) == pytest.approx(float(dense.detach()), rel=1e-3)
    for mine, theirs in zip(torch.autograd.grad(ours, given), torch.autograd.grad(dense, exact), strict=True):
        assert mine.dtype == dtype
        assert float((mine.double() - theirs).norm() / theirs.norm()) < 0.01


def test_a_float32_child_under_autocast_has_exact_logits() -> None:
    parent_ND, child_ND, head_VD, child_head_VD = (tensor.float() for tensor in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = kl_loss(parent_ND, child_ND, head_VD, child_head_VD)
        compared = compare_next_token(parent_ND, [child_ND], head_VD, torch.zeros(N, dtype=torch.long), [child_head_VD])
    exact = float(dense_kl_N(*pair()).mean())
    assert float(ours) == pytest.approx(exact, rel=1e-4)
    assert float(compared.kl.mean()) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("dtype", NARROW)
def test_choices_that_tie_only_when_rounded_do_not_agree(dtype: torch.dtype) -> None:
    head_VD = torch.tensor([[1.0, 0.0], [1.0, 2.0**-6]], dtype=dtype)
    parent_ND, child_ND = torch.tensor([[1.0, -(2.0**-6)], [1.0, 2.0**-6]], dtype=dtype).split(1)
    logits = child_ND @ head_VD.T
    assert logits[0, 0] == logits[0, 1]
    compared = compare_next_token(parent_ND, [child_ND], head_VD, torch.zeros(1, dtype=torch.long))
    assert not compared.agree.any()


def test_narrow_logits_of_all_tokens_and_a_wide_head_are_never_held() -> None:
    num_tokens, vocabulary, chunk, width = 64, 4096, 16, 128
    parent_ND, child_ND = (torch.randn(num_tokens, width).bfloat16().requires_grad_() for _ in range(2))
    head_VD = torch.randn(vocabulary, width).bfloat16()
    with LargestTensor() as largest:
        kl_loss(parent_ND, child_ND, head_VD, head_VD, chunk).backward()
        compare_next_token(parent_ND, [child_ND], head_VD, torch.zeros(num_tokens, dtype=torch.long), chunk=chunk)
    assert largest.elements <= 1 << 18 < vocabulary * width


def test_comparison_equals_the_dense_definition_for_every_child() -> None:
    parent_ND, child_ND, head_VD, child_head_VD = (tensor.float() for tensor in pair())
    labels_N = torch.arange(N) % V
    children, heads = [child_ND, -parent_ND], [child_head_VD, head_VD]
    compared = compare_next_token(parent_ND, children, head_VD, labels_N, heads, chunk=10)
    parent_NV = (parent_ND @ head_VD.T).log_softmax(-1)
    torch.testing.assert_close(compared.parent_nll, -parent_NV.gather(1, labels_N[:, None])[:, 0])
    for index, (hidden_ND, head) in enumerate(zip(children, heads, strict=True)):
        child_NV = (hidden_ND @ head.T).log_softmax(-1)
        dense_N = dense_kl_N(parent_ND, hidden_ND, head_VD, head)
        torch.testing.assert_close(compared.kl[index], dense_N, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(compared.child_nll[index], -child_NV.gather(1, labels_N[:, None])[:, 0])
        assert torch.equal(compared.agree[index], child_NV.argmax(-1) == parent_NV.argmax(-1))
    alone = compare_next_token(parent_ND, children, head_VD, labels_N, heads, chunk=N)
    torch.testing.assert_close(alone.kl, compared.kl, rtol=1e-4, atol=1e-6)


def test_no_children_still_give_the_parents_loss() -> None:
    parent_ND, _, head_VD, _ = pair()
    compared = compare_next_token(parent_ND, [], head_VD, torch.zeros(N, dtype=torch.long))
    assert compared.kl.shape == (0, N)
    assert compared.parent_nll.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "`chunk` is 0"),
        ({"child_hidden_ND": torch.zeros(3, D, dtype=torch.float64)}, "both must agree"),
        ({"child_head_VD": torch.zeros(V, D + 1, dtype=torch.float64)}, r"\[vocabulary, width\]"),
        ({"parent_hidden_ND": torch.zeros(0, D, dtype=torch.float64)}, "has no tokens"),
    ],
)
def test_bad_shapes_are_named(change: dict[str, Any], message: str) -> None:
    names = ("parent_hidden_ND", "child_hidden_ND", "parent_head_VD", "child_head_VD")
    given: dict[str, Any] = {**dict(zip(names, pair(), strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        kl_loss(**given)


def test_bad_comparisons_are_named() -> None:
    parent_ND, child_ND, head_VD, _ = pair()
    labels_N = torch.zeros(N, dtype=torch.long)
    with pytest.raises(ValueError, match="1 children but 2 child heads"):
        compare_next_token(parent_ND, [child_ND], head_VD, labels_N, [head_VD, head_VD])
    with pytest.raises(ValueError, match=r"children\[0\] has 3 tokens, its parent 37"):
        compare_next_token(parent_ND, [child_ND[:3]], head_VD, labels_N)
    with pytest.raises(ValueError, match=r"`labels_N` has shape \(3,\)"):
        compare_next_token(parent_ND, [child_ND], head_VD, labels_N[:3])
