"""Reading safetensors files tensor by tensor, one file or many shards; torch only where a tensor is returned.

Bytes are read, not mapped: a worker whose address space is limited can open a model larger than the limit, and a file
that is overwritten later cannot change tensors that are in use.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.errors import UserError

if TYPE_CHECKING:
    import torch

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_DTYPES: Final = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WEIGHT_FILES: Final = ("*.safetensors", INDEX, "*.gguf", *_PICKLED)
"""What a folder of any weights has."""
_MOST_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    file: Path
    dtype: str
    """`float32`, `bfloat16` or `float16`."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int

    def read(self) -> "torch.Tensor":
        """The tensor in the dtype it is stored in, in memory of its own."""
        import numpy as np
        import torch

        data = np.fromfile(self.file, dtype=np.uint8, count=self.num_bytes, offset=self.offset)
        if data.nbytes < self.num_bytes:
            raise _damaged(self.file, "it became shorter while it was read")
        return torch.from_numpy(data).view(getattr(torch, self.dtype)).view(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model folder by their names in the file."""

    folder: Path
    tensors: Mapping[str, StoredTensor]

    def with_names(self, name_of: Callable[[str], str]) -> "Checkpoint":
        """The same tensors by other names."""
        return replace(self, tensors={name_of(name): tensor for name, tensor in self.tensors.items()})

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The weight files, sorted."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))


def open_checkpoint(folder: Path) -> Checkpoint:
    """The headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.

    Only headers and file sizes are read. Raises `UserError` for a folder without weights, pickled weights, a missing
    shard, a tensor that is not where the index says, a truncated or damaged file, or another number type.
    """
    if (folder / SINGLE).is_file():
        return Checkpoint(folder, _read_header(folder / SINGLE))
    if (folder / INDEX).is_file():
        return Checkpoint(folder, _read_shards(folder, _weight_map(folder / INDEX)))
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"parent: the weights in `{folder}` are pickled (`{pickled[0]}`), and loading a pickle can run any code; "
            "convert them to safetensors once: load the model with Transformers and call `save_pretrained`."
        )
    raise UserError(
        f"parent: the folder `{folder}` has no weights (neither `{SINGLE}` nor `{INDEX}`); "
        "give a folder as `save_pretrained` writes it."
    )


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(index, "it holds no `weight_map`") from None
    for file in files.values():
        if Path(file).name != file:
            raise _damaged(index, f"it names the shard `{file}`, which is not a file beside it")
    return files


def _read_shards(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    shards: dict[str, dict[str, StoredTensor]] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise UserError(
                f"parent: the folder `{folder}` lacks the shard `{file}` that `{INDEX}` lists; copy it again."
            )
        shards[file] = _read_header(folder / file)
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise _damaged(folder / file, f"the tensor `{name}` that `{INDEX}` puts there is not in it")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _read_header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise _damaged(file, f"it has {size:,} bytes, too few for its header")
        text = stream.read(length)
    try:
        header = json.loads(text)
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(file, "its header is not that of a safetensors file") from None
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=8 + length)
    if size < end:
        raise _damaged(file, f"it is truncated: {size:,} bytes where its header promises {end:,}")
    return tensors


def _stored(file: Path, name: str, entry: Mapping[str, Any], start: int) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise UserError(
            f"parent: the tensor `{name}` in `{file}` is stored as {entry['dtype']}; "
            "give the model in float32, bfloat16 or float16."
        )
    dtype, num_bytes = _DTYPES[entry["dtype"]]
    shape = tuple(int(size) for size in entry["shape"])
    for size in shape:
        num_bytes *= size
    first, last = entry["data_offsets"]
    if first < 0 or last - first != num_bytes or min(shape, default=0) < 0:
        raise ValueError(name)
    return StoredTensor(file, dtype, shape, start + first, num_bytes)


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"parent: the file `{file}` is damaged: {reason}; copy it again from the model's source.")
