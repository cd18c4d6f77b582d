"""A trained model as a GGUF file with the tokenizer of its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.nas.engines.gguf.metadata import described
from inlay.nas.engines.gguf.packing import Packed
from inlay.nas.engines.gguf.tokenizer import tokenizer_metadata
from inlay.nas.engines.gguf.writer import write_file

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes, Format
    from inlay.nas.modeling import InlayConfig


def write_trained(
    path: Path,
    packed: Packed,
    config: InlayConfig,
    folder: Path,
    rows: Callable[[str, Format], Bytes],
) -> None:
    """Writes a model tensor by tensor; its name is the file's, without the ending.

    Args:
        path: the file; what is there is replaced.
        packed: its layers and tensors.
        config: its shape.
        folder: the model folder with its tokenizer.
        rows: a tensor's bytes in a format, by its whole-model name.

    Raises:
        UserError: the tokenizer cannot be rebuilt, or the extra `gguf` is not installed.
        ValueError: llama.cpp does not have the rotation of its positions.
    """
    rotation, own = described(packed, config, path.stem)
    fields = [*own, *tokenizer_metadata(folder, config.vocab_size)]

    write_file(path, packed, rotation, fields, rows)
