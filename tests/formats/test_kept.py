"""What was rounded before is read again, and whatever happens to it changes no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.kept import KeptRounding

FORMS = ("f16", "q8_0", "q5_0", "q4_K")


def matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weighed", [False, True])
def test_it_is_what_the_format_rounds(tmp_path: Path, name: str, weighed: bool) -> None:
    own, counts = matrix(), np.linspace(0.1, 3, 256, dtype=np.float32) if weighed else None
    kept = KeptRounding(tmp_path / "rounded")
    expected = GGUF[name].rounded(own, counts)
    for _ in range(2):
        assert (kept.rounded(GGUF[name], own, counts) == expected).all()


def test_other_numbers_formats_shapes_and_importances_are_others(tmp_path: Path) -> None:
    own, kept = matrix(), KeptRounding(tmp_path)
    counts = np.linspace(0.1, 3, 256, dtype=np.float32)
    for form, numbers, told in (
        ("q4_K", own, None),
        ("q4_K", own, counts),
        ("q4_K", own + 1, None),
        ("q4_K", own.reshape(3, 512), None),
        ("q5_K", own, None),
    ):
        assert (kept.rounded(GGUF[form], numbers, told) == GGUF[form].rounded(numbers, told)).all()
    assert len(list(tmp_path.iterdir())) == 5


def test_it_is_packed_once(tmp_path: Path) -> None:
    own, kept = matrix(), KeptRounding(tmp_path)
    kept.rounded(GGUF["q4_0"], own)
    (path,) = tmp_path.iterdir()
    other = GGUF["q4_0"].pack(own + 1)
    path.write_bytes(other.tobytes())
    # What lies there is what is read.
    assert (kept.rounded(GGUF["q4_0"], own) == GGUF["q4_0"].unpack(other, 256)).all()


def test_what_is_not_whole_or_cannot_be_kept_is_rounded_again(tmp_path: Path) -> None:
    own, kept = matrix(), KeptRounding(tmp_path / "rounded")
    expected = kept.rounded(GGUF["q4_0"], own)
    (path,) = kept.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert (kept.rounded(GGUF["q4_0"], own) == expected).all()
    assert path.stat().st_size == GGUF["q4_0"].num_bytes(own.shape)
    (tmp_path / "file").write_text("no folder")
    assert (KeptRounding(tmp_path / "file").rounded(GGUF["q4_0"], own) == expected).all()
