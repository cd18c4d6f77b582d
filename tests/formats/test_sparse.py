"""2:4: which numbers are kept, what becomes of them, and that packed rows are what modules multiply by."""

from __future__ import annotations

import pytest
import torch

from inlay.distill.rounding import rounded as computed_with
from inlay.nas.formats.fitting import fitted
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.sparse import SPARSE, TWO_OF_FOUR, kept, kept_in_turn, refitted
from inlay.nas.formats.through import through
from inlay.nas.modeling.sparse_inlay import SparseLinear, keep_packed

FORM = SPARSE[TWO_OF_FOUR]
ROW = 172


@pytest.fixture
def weights_RC() -> torch.Tensor:
    return torch.randn(12, ROW, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.fixture
def inputs() -> Inputs:
    read_ND = torch.randn(1024, ROW, generator=torch.Generator().manual_seed(2)).cumsum(1)
    return Inputs("read", read_ND.T @ read_ND / len(read_ND))


def numbers(rows: object) -> torch.Tensor:
    return torch.from_numpy(FORM.unpack(rows, ROW))  # type: ignore[arg-type]


def test_two_of_each_four_stay_as_they_are_and_take_nine_bits_a_number(weights_RC: torch.Tensor) -> None:
    weights_RC[0] = 0.0
    weights_RC[1] = 1.0
    rows = FORM.pack(weights_RC.numpy())
    assert rows.shape == (12, ROW // 2 * 2 + 22)
    assert FORM.num_bytes((64, 64)) * 8 == 9 * 64 * 64
    found_RC = numbers(rows)
    is_kept_RC = FORM.mask(rows, ROW)
    assert (is_kept_RC.view(12, -1, 4).sum(2) == 2).all()
    assert torch.equal(found_RC, torch.where(is_kept_RC, weights_RC.bfloat16().float(), 0.0))
    ordered = weights_RC.abs().view(12, -1, 4).sort(2).values
    assert torch.equal(found_RC.view(12, -1, 4).abs().sort(2).values[..., 2:], ordered[..., 2:].bfloat16().float())
    assert (FORM.pack(found_RC.numpy()) == rows).all()


def test_an_importance_decides_which(weights_RC: torch.Tensor) -> None:
    counts = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(ROW // 4)
    assert torch.equal(FORM.mask(FORM.pack(weights_RC.numpy(), counts.numpy()), ROW), (counts > 0).expand(12, ROW))


def test_what_is_kept_takes_over_from_what_is_not(weights_RC: torch.Tensor, inputs: Inputs) -> None:
    wanda_RC = kept(weights_RC.square() * inputs.importance_C)
    in_turn_RC = kept_in_turn(weights_RC, inputs.factor_CC)
    assert (in_turn_RC.view(12, -1, 4).sum(2) == 2).all()
    found_RC = numbers(fitted(weights_RC, FORM, inputs))
    assert torch.equal(found_RC != 0, in_turn_RC)
    assert inputs.harm(found_RC - weights_RC).mean() < 0.05 * inputs.harm(weights_RC * ~wanda_RC).mean()


def test_a_row_is_refitted_as_its_normal_equations_say(weights_RC: torch.Tensor) -> None:
    read_ND = torch.randn(512, ROW, generator=torch.Generator().manual_seed(3))
    inputs = Inputs("", read_ND.T @ read_ND / 512)
    is_kept_RC = kept(weights_RC.abs())
    found_RC = refitted(weights_RC, is_kept_RC, inputs.damped_CC)
    for weights_C, is_kept_C, found_C in zip(weights_RC, is_kept_RC, found_RC, strict=True):
        gram_KC = inputs.damped_CC[is_kept_C]
        expected_K = torch.linalg.solve(gram_KC[:, is_kept_C], gram_KC @ weights_C)
        torch.testing.assert_close(found_C[is_kept_C], expected_K, rtol=1e-3, atol=1e-4)
        assert (found_C[~is_kept_C] == 0).all()


def test_the_groups_behind_know_what_those_before_left_out(weights_RC: torch.Tensor, inputs: Inputs) -> None:
    """Against the same by its definition: after each column the best change of those behind it, solved anew."""
    gram_CC, left_RC = inputs.damped_CC.double(), weights_RC[:, :24].double()
    gram_CC = gram_CC[:24, :24]
    factor_CC = torch.linalg.cholesky(torch.linalg.inv(gram_CC), upper=True)
    found_RC = kept_in_turn(weights_RC[:, :24], factor_CC.float())
    for column in range(24):
        if column % 4 == 0:
            inverse = torch.linalg.inv(gram_CC[column:, column:])
            # The pivots of a group, each given those before it.
            pivots = torch.linalg.cholesky(inverse, upper=True).diagonal()[:4]
            expected = kept((left_RC[:, column : column + 4] / pivots).square())
            assert torch.equal(found_RC[:, column : column + 4], expected), column
        error_R = left_RC[:, column] * ~found_RC[:, column]
        left_RC[:, column] -= error_R
        behind = slice(column + 1, 24)
        if column < 23:
            moved = torch.linalg.solve(gram_CC[behind, behind], gram_CC[behind, column, None] * error_R)
            left_RC[:, behind] += moved.T


def test_gradients_reach_the_weights_behind_and_what_is_not_kept_stays_away(
    weights_RC: torch.Tensor, inputs: Inputs
) -> None:
    own = through(weights_RC, FORM, inputs, None)
    model = torch.nn.Sequential(torch.nn.Linear(ROW, 12, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(own.start(weights_RC))
    before = model[0].weight.detach().clone()
    assert (own.pack(before) == own.fitted).all()
    read_ND = torch.randn(7, ROW, generator=torch.Generator().manual_seed(4))
    with computed_with(model, {"0.weight": own}):
        output = model(read_ND)
        torch.testing.assert_close(output, read_ND @ numbers(own.fitted).T)
        output.sum().backward()
    assert torch.equal(model[0].weight, before)
    torch.testing.assert_close(model[0].weight.grad, read_ND.sum(0).expand(12, ROW))
    moved = own.pack(before + 100.0)
    assert torch.equal(FORM.mask(moved, ROW), FORM.mask(own.fitted, ROW))
    assert torch.equal(numbers(moved), own(before + 100.0))


@pytest.mark.parametrize("bias", [True, False])
def test_a_module_that_stays_packed_multiplies_by_what_rounding_says(weights_RC: torch.Tensor, bias: bool) -> None:
    rows = FORM.pack(weights_RC.numpy())
    outer = torch.nn.Sequential(torch.nn.Linear(ROW, 12, bias=bias), torch.nn.ReLU())
    keep_packed(outer, TWO_OF_FOUR)
    packed = outer[0]
    assert isinstance(packed, SparseLinear)
    assert (packed.numbers(torch.float32) == 0).all()
    packed.packed.copy_(torch.from_numpy(rows))
    assert packed.packed.nbytes == FORM.num_bytes((12, ROW))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(packed.to(dtype).numbers(dtype).float(), numbers(rows))
    assert packed.packed.dtype == torch.uint8
    read_ND = torch.randn(3, ROW)
    plain = torch.nn.functional.linear(read_ND, numbers(rows), None if packed.bias is None else packed.bias.float())
    torch.testing.assert_close(packed.float()(read_ND), plain)
    with pytest.raises(ValueError, match=r"format is 'q4_0'; matrices stay packed in 2:4"):
        keep_packed(outer, "q4_0")
