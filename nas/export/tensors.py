"""Tensors in files of the safetensors format, one at a time or a file at a time: a large model needs no memory for all
of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

MOST_SHARD_BYTES: Final = 5_000_000_000
"""What Transformers and the hub take for one file of weights."""

_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2}
_INDEX: Final = "model.safetensors.index.json"


def copy_tensors(
    source: Path, folder: Path, rename: Callable[[str], str], most_shard_bytes: int = MOST_SHARD_BYTES
) -> None:
    """Copies a safetensors file into a folder, bit for bit.

    Where all fits, it becomes `model.safetensors`, else shards of at most `most_shard_bytes` with their index; a tensor
    that is larger than that is a shard of its own.

    Args:
        source: the file.
        folder: where to write.
        rename: from a tensor's name in `source` to its name in the copy; two must not become one.
        most_shard_bytes: bytes of tensors in one file.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        sizes: dict[str, Any] = {name: _num_bytes(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
        split = split_state_dict_into_shards_factory(
            sizes,
            get_storage_size=lambda num_bytes: num_bytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=most_shard_bytes,
        )
        for shard, names in split.filename_to_tensors.items():
            _write_shard(source, folder / shard, names, _header(file, names, rename))
    if split.is_sharded:
        weight_map = {rename(name): shard for name, shard in split.tensor_to_filename.items()}
        _write_index(folder, split.metadata, weight_map)


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], most_shard_bytes: int = MOST_SHARD_BYTES
) -> None:
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
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(files) == 1:
        files = ["model.safetensors"]
    for number, file in enumerate(files):
        (folder / f"{number}.part").rename(folder / file)
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_index(folder, {"total_size": total}, weight_map)


def _write_index(folder: Path, metadata: Mapping[str, Any], weight_map: Mapping[str, str]) -> None:
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _header(file: Any, names: Sequence[str], rename: Callable[[str], str]) -> bytes:
    """What stands before the tensors in a file of the safetensors format: its own length, then names and places."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        part = file.get_slice(name)
        start, end = end, end + _num_bytes(part)
        header[rename(name)] = {"dtype": part.get_dtype(), "shape": part.get_shape(), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _write_shard(source: Path, path: Path, names: Sequence[str], header: bytes) -> None:
    import torch
    from safetensors import safe_open

    with path.open("wb") as stream:
        stream.write(header)
        for name in names:
            # Opened anew, since what was read of a file stays mapped as long as it is open.
            with safe_open(source, framework="pt") as file:
                stream.write(memoryview(file.get_tensor(name).reshape(-1).view(torch.uint8).numpy()))


def _num_bytes(part: Any) -> int:
    count = 1
    for size in part.get_shape():
        count *= size
    return count * _BYTES[part.get_dtype()]
