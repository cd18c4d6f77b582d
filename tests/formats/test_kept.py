"""What was rounded before is read again, and whatever happens to it changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.kept import KeptRounding
from inlay.nas.formats.tensors import packed, rounded, weighed

FORMS = ("f16", "q8_0", "q5_0", "q4_K")


def matrix() -> torch.Tensor:
    return torch.randn(6, 256, generator=torch.Generator().manual_seed(0))


def inputs(name: str = "some", seed: int = 1) -> Inputs:
    read_ND = torch.randn(512, 256, generator=torch.Generator().manual_seed(seed))
    return Inputs(name, read_ND.T @ read_ND / 512)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("told", [None, inputs()])
def test_it_is_what_is_rounded_without(tmp_path: Path, name: str, told: Inputs | None) -> None:
    kept = KeptRounding(tmp_path / "rounded")
    expected = rounded(matrix(), GGUF[name], told)
    for _ in range(2):
        assert (rounded(matrix(), GGUF[name], told, kept) == expected).all()


def test_other_numbers_formats_shapes_and_inputs_are_others(tmp_path: Path) -> None:
    own, kept = matrix(), KeptRounding(tmp_path)
    form, other = GGUF["q4_K"], GGUF["q5_K"]
    for numbers, into, told in (
        (own, form, None),
        (own, form, inputs()),
        (own, form, inputs("others", 2)),
        (own + 1, form, None),
        (own.reshape(3, 512), form, None),
        (own, other, None),
    ):
        assert (packed(numbers, into, told, kept) == packed(numbers, into, told)).all()
    assert (weighed(own, form, inputs(), kept) == weighed(own, form, inputs())).all()
    assert len(list(tmp_path.iterdir())) == 7


def test_it_is_packed_once(tmp_path: Path) -> None:
    own, kept = matrix(), KeptRounding(tmp_path)
    packed(own, GGUF["q4_0"], None, kept)
    (path,) = tmp_path.iterdir()
    other = packed(own + 1, GGUF["q4_0"])
    path.write_bytes(other.tobytes())
    # What lies there is what is read.
    assert (packed(own, GGUF["q4_0"], None, kept) == other).all()


def test_what_is_not_whole_or_cannot_be_kept_is_rounded_again(tmp_path: Path) -> None:
    own, kept = matrix(), KeptRounding(tmp_path / "rounded")
    expected = packed(own, GGUF["q4_0"], None, kept)
    (path,) = kept.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert (packed(own, GGUF["q4_0"], None, kept) == expected).all()
    assert path.stat().st_size == GGUF["q4_0"].num_bytes(tuple(own.shape))
    (tmp_path / "file").write_text("no folder")
    assert (packed(own, GGUF["q4_0"], None, KeptRounding(tmp_path / "file")) == expected).all()
