"""Formats of compressed-tensors checkpoints against the package of that name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from inlay.nas.errors import UserError
from inlay.nas.formats.compressed import COMPRESSED, CompressedFormat
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.tensors import packed

ROW = 256


@pytest.fixture(params=list(COMPRESSED))
def form(request: pytest.FixtureRequest) -> CompressedFormat:
    return COMPRESSED[request.param]


@pytest.fixture
def weights_RC() -> torch.Tensor:
    weights = torch.randn(24, ROW, generator=torch.Generator().manual_seed(1)) * 0.05
    weights[3] = 0.0
    weights[5, 7] = 40.0
    return weights


def inputs() -> Inputs:
    read_ND = torch.randn(1024, ROW, generator=torch.Generator().manual_seed(2)).cumsum(1)
    return Inputs("read", read_ND.T @ read_ND / len(read_ND))


def decompressed(form: CompressedFormat, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """By the package, of a module's tensors."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**form.scheme))
    found = BaseCompressor.get_value_from_registry(form.file_format).decompress(tensors, scheme)
    return found["weight"]


@pytest.mark.parametrize("told", [None, inputs()], ids=["nearest", "fitted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_package_unpacks_the_numbers_that_rounding_says(
    form: CompressedFormat, weights_RC: torch.Tensor, told: Inputs | None, dtype: torch.dtype
) -> None:
    rows = packed(weights_RC, form, told)
    expected = torch.from_numpy(form.unpack(rows, ROW)).to(dtype)
    found = decompressed(form, form.tensors("weight", rows, ROW, dtype))
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert (found != weights_RC.to(dtype)).float().mean() > 0.5
    assert torch.equal(found[3], torch.zeros(ROW, dtype=dtype))


def test_the_package_packs_these_numbers_into_the_same_bytes(form: CompressedFormat, weights_RC: torch.Tensor) -> None:
    weights_RC[3] = 0.1  # it divides by scales
    rows = packed(weights_RC, form, inputs())
    ours = form.tensors("weight", rows, ROW, torch.float32)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**form.scheme))
    module = {"weight": torch.from_numpy(form.unpack(rows, ROW)), "weight_scale": ours["weight_scale"]}
    theirs = BaseCompressor.get_value_from_registry(form.file_format).compress(module, scheme)
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), ours[name].view(torch.uint8)), name


def test_a_checkpoint_has_the_bytes_that_it_says(form: CompressedFormat, weights_RC: torch.Tensor) -> None:
    tensors = form.tensors("weight", packed(weights_RC, form), ROW, torch.bfloat16)
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if name != "weight_shape")
    assert stored == form.num_bytes((24, ROW)) == packed(weights_RC, form).size
    assert tensors["weight_scale"].shape == (24, form.num_scales((24, ROW)) // 24)


def test_one_large_number_harms_only_those_of_its_scale(weights_RC: torch.Tensor) -> None:
    weights_RC[5, :] = 0.01
    weights_RC[5, 7] = 40.0
    for name, harmed in (("int4_g32", 32), ("int4_g128", 128), ("int8", ROW)):
        found = COMPRESSED[name].rounded(weights_RC.numpy())[5]
        assert (found[:7] == 0).all()
        assert (np.abs(found[harmed:] - 0.01) < 0.001).all()
    assert (np.abs(COMPRESSED["fp8"].rounded(weights_RC.numpy())[5, :7] - 0.01) < 0.01).all()


def test_fp8_takes_the_nearest_number_of_that_type() -> None:
    own = torch.linspace(-448, 448, 4096).view(1, -1)
    found = torch.from_numpy(COMPRESSED["fp8"].rounded(own.numpy()))
    assert torch.equal(found, own.to(torch.float8_e4m3fn).float())


def test_a_smaller_scale_is_taken_where_all_others_are_nearer(weights_RC: torch.Tensor) -> None:
    form = COMPRESSED["int4_g32"]
    groups = weights_RC[:3].reshape(-1, 32)
    plain = (groups.abs().amax(1, keepdim=True) / 7.5).bfloat16().float()
    usual = (groups / plain).round().clamp(-8, 7) * plain
    found = torch.from_numpy(form.rounded(weights_RC[:3].numpy())).reshape(-1, 32)
    usual_error, error = ((each - groups).square().sum(1) for each in (usual, found))
    assert (error <= usual_error).all()
    assert error.sum() < 0.95 * usual_error.sum()


def test_a_type_that_does_not_hold_the_scales_is_told(form: CompressedFormat) -> None:
    tiny = torch.full((4, ROW), 1e-7)
    told = f"x.weight: float16 does not hold a scale of {form.name}, which is a bfloat16; give a parent in bfloat16 or"
    with pytest.raises(UserError, match=f"^{told} float32$"):
        form.tensors("x.weight", packed(tiny, form), ROW, torch.float16)
    usual = torch.randn(4, ROW) * 0.05
    assert form.tensors("x.weight", packed(usual, form), ROW, torch.float16)["x.weight_scale"].dtype == torch.float16


def test_what_fits_instead() -> None:
    names = {row: COMPRESSED["int4_g128"].holding(row).name for row in (256, 96, 100, 33)}
    assert names == {256: "int4_g128", 96: "int4_g32", 100: "int8", 33: "f32"}
    assert COMPRESSED["fp8"].holding(33).name == "f32"
