"""Tensors in files of the safetensors format, one at a time or a file at a time: a large model needs no memory for all
of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inlay.distill.tensor_files import MOST_FILE_BYTES, cut, header, raw_bytes
from inlay.nas.families.checkpoint import INDEX, SINGLE
from inlay.nas.pieces.model_files import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2}


def copy_tensors(
    source: ModelFiles, folder: Path, rename: Callable[[str], str], most_shard_bytes: int = MOST_FILE_BYTES
) -> None:
    """Copies a stored model's tensors into a folder, bit for bit.

    Where all fits, it becomes `model.safetensors`, else shards of at most `most_shard_bytes` with their index; a tensor
    that is larger than that is a shard of its own.

    Args:
        source: the model.
        folder: where to write.
        rename: from a tensor's name in `source` to its name in the copy; two must not become one.
        most_shard_bytes: bytes of tensors in one file.
    """
    sizes = {name: _num_bytes(*source.part(name)) for name in source}
    shards = cut(sizes, most_shard_bytes)
    files = _file_names(len(shards))
    for file, names in zip(files, shards, strict=True):
        _write_shard(source, folder / file, names, rename)
    if len(files) > 1:
        weight_map = {rename(name): file for file, names in zip(files, shards, strict=True) for name in names}
        _write_index(folder, sum(sizes.values()), weight_map)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], most_shard_bytes: int = MOST_FILE_BYTES) -> None:
    """Writes tensors into a folder, in files as `copy_tensors` makes them; those of one file are held at once."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(held, folder / f"{len(shards)}.part", {"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > most_shard_bytes:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    files = _file_names(len(shards))
    for number, file in enumerate(files):
        (folder / f"{number}.part").rename(folder / file)
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_index(folder, total, weight_map)


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _write_index(folder: Path, total_bytes: int, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(source: ModelFiles, path: Path, names: Sequence[str], rename: Callable[[str], str]) -> None:
    parts = {rename(name): (*source.part(name), _num_bytes(*source.part(name))) for name in names}
    with path.open("wb") as stream:
        stream.write(header(parts, {"format": "pt"}))
        for name in names:
            stream.write(raw_bytes(source[name]))


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * _BYTES[dtype]
