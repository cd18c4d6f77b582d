"""Codes by least squares: what they promise of any format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inlay.nas.errors import UserError
from inlay.nas.formats import FORMATS
from inlay.nas.formats.codes import CODES
from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.formats.fitting import fitted
from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.inputs import DAMPING, Inputs
from inlay.nas.formats.sparse import SPARSE


def correlated(channels: int, tokens: int = 2048) -> torch.Tensor:
    """Inputs as a model has them: a few directions hold most of what there is. [tokens, channels]"""
    random = torch.Generator().manual_seed(0)
    mixed_CC = torch.randn(channels, channels, generator=random) / channels**0.5
    sizes_C = torch.exp(-torch.arange(channels) / (channels / 6))
    return (torch.randn(tokens, channels, generator=random) * sizes_C) @ mixed_CC


@pytest.fixture
def weights_RC() -> torch.Tensor:
    return torch.randn(48, 512, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.mark.parametrize("name", [*CODES, *COMPRESSED])
def test_outputs_change_less_than_by_the_nearest_codes_on_other_text_too(name: str, weights_RC: torch.Tensor) -> None:
    form, read_ND = FORMATS[name], correlated(512, 4096)
    own_ND, other_ND = read_ND[:2048], read_ND[2048:]
    inputs = Inputs("", own_ND.T @ own_ND / len(own_ND))
    harm = {}
    for how, packed in (
        ("fitted", fitted(weights_RC, form, inputs)),
        ("weighed", form.pack(weights_RC.numpy(), inputs.importance_C.numpy())),
    ):
        change_RC = torch.from_numpy(form.unpack(packed, 512)) - weights_RC
        harm[how] = float((other_ND @ change_RC.T).square().mean())
    assert harm["fitted"] < 0.6 * harm["weighed"]


def test_the_harm_is_what_outputs_change_by(weights_RC: torch.Tensor) -> None:
    read_ND = correlated(512)
    inputs = Inputs("", read_ND.T @ read_ND / len(read_ND))
    change_RC = weights_RC - weights_RC.bfloat16().float()
    expected_R = (read_ND @ change_RC.T).square().mean(0)
    torch.testing.assert_close(inputs.harm(change_RC), expected_R, rtol=1e-3, atol=1e-9)


def test_every_column_takes_the_code_that_is_best_for_all_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same by its definition: after each column the best change of those behind it, solved anew."""
    monkeypatch.setattr("inlay.nas.formats.fitting.PASSES", 0)
    name, channels = "q4_0", 64
    form, codes, read_ND = GGUF[name], CODES[name], correlated(64).double()
    gram_CC = read_ND.T @ read_ND / len(read_ND)
    inputs = Inputs("", gram_CC.float())
    own_RC = torch.randn(5, channels, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found_RC = form.unpack(fitted(own_RC.float(), form, inputs), channels)
    damped_CC = gram_CC + DAMPING * gram_CC.diagonal().mean() * torch.eye(channels)
    left_RC = own_RC.clone()
    for start in range(0, channels, codes.block):
        block = left_RC[:, start : start + codes.block].float().numpy()
        scale_RB, offset_RB = codes.grid(form.pack(block, inputs.importance_C[start : start + codes.block].numpy()))
        for column in range(codes.block):
            here, behind = start + column, slice(start + column + 1, channels)
            scale_R, offset_R = scale_RB[:, column], offset_RB[:, column]
            code_R = np.clip(np.round((left_RC[:, here].numpy() - offset_R) / scale_R), codes.least, codes.most)
            error_R = left_RC[:, here] - torch.from_numpy(code_R * scale_R + offset_R)
            left_RC[:, here] -= error_R
            if here + 1 < channels:
                moved_CR = torch.linalg.solve(damped_CC[behind, behind], damped_CC[behind, here, None] * error_R)
                left_RC[:, behind] += moved_CR.T
    assert np.abs(found_RC - left_RC.numpy()).max() < 1e-4


def test_coordinate_descent_ends_where_no_single_code_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inlay.nas.formats.fitting.PASSES", 50)
    form, codes, read_ND = GGUF["q4_0"], CODES["q4_0"], correlated(64)
    inputs = Inputs("", read_ND.T @ read_ND / len(read_ND))
    own_RC = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    packed = fitted(own_RC, form, inputs)
    scale_RC, _ = (
        torch.from_numpy(np.concatenate(parts, axis=1))
        for parts in zip(*(codes.grid(packed[:, start : start + 18].copy()) for start in (0, 18)), strict=True)
    )
    numbers_RC = torch.from_numpy(form.unpack(packed, 64))

    def harm_R(change_RC: torch.Tensor) -> torch.Tensor:
        return ((change_RC @ inputs.damped_CC) * change_RC).sum(1)

    least_R = harm_R(numbers_RC - own_RC)
    for column in range(64):
        for step in (-1, 1):
            other_RC = numbers_RC.clone()
            other_RC[:, column] += step * scale_RC[:, column]
            code_R = torch.round(other_RC[:, column] / scale_RC[:, column])
            inside_R = (code_R >= codes.least) & (code_R <= codes.most)
            assert (harm_R(other_RC - own_RC)[inside_R] >= least_R[inside_R] * (1 - 1e-4)).all()


def test_inputs_that_say_nothing_leave_every_number_to_itself(weights_RC: torch.Tensor) -> None:
    form = GGUF["q4_0"]
    alone = fitted(weights_RC, form, Inputs("", torch.eye(512)))
    error = np.abs(form.unpack(alone, 512) - weights_RC.numpy()).max()
    assert error <= np.abs(form.rounded(weights_RC.numpy()) - weights_RC.numpy()).max() * 1.2
    assert fitted(weights_RC, form, Inputs("", torch.zeros(512, 512))).shape == alone.shape


def test_only_formats_with_codes_are_fitted() -> None:
    assert {name for name in FORMATS if FORMATS[name].can_fit} == {*CODES, *COMPRESSED, *SPARSE}


def test_statistics_that_are_not_finite_are_told(weights_RC: torch.Tensor) -> None:
    gram_CC = torch.eye(512)
    gram_CC[3, 3] = torch.nan
    with pytest.raises(UserError, match="q4_0: what a matrix reads is not finite; gather the statistics anew"):
        fitted(weights_RC, GGUF["q4_0"], Inputs("", gram_CC))
