"""llama.cpp's own presets: which type its quantiser gives each tensor of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from inlay.nas.families.gguf import gguf_package
from inlay.nas.formats.gguf import GGUF

PRESETS: Final[Mapping[str, int]] = MappingProxyType(
    {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_0": 2, "Q3_K_M": 12}
)
"""By the names that people know, large ones first: the file type that asks its quantiser for it."""


def types_of(path: Path) -> dict[str, str]:
    """The format of every tensor of a file. Raises `KeyError` for one that is not among `GGUF`."""
    names = {form.number: form.name for form in GGUF.values()}
    return {tensor.name: names[int(tensor.tensor_type)] for tensor in gguf_package().GGUFReader(path).tensors}
