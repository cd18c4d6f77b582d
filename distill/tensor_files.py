"""Tensors in files of the safetensors format that are no larger than wanted, written as they come.

What is sharded among processes is never gathered: the process that writes a file is sent the rows of one tensor, one
process's after the other's, and holds no more of it than these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from inlay.distill.parallel import Ranks, row_counts

MOST_FILE_BYTES: Final = 5_000_000_000
"""What Transformers and the hub take for one file of weights."""
NAMES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
"""What the format calls types of numbers."""


@dataclass(frozen=True)
class Rows:
    """What becomes one tensor of a file, as one of the processes has it."""

    shape: tuple[int, ...]
    """Of the whole."""
    dtype: torch.dtype
    """One of `NAMES`."""
    own: Callable[[], Tensor]
    """This process's rows of it, or all; made when they are written, by all processes at once."""
    shared: bool = False
    """Whether the processes hold different rows, as `shard` cuts them."""

    @property
    def num_bytes(self) -> int:
        """Of the whole."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class File:
    """A file that the processes wrote together."""

    names: tuple[str, ...]
    """Of its tensors."""
    path: Path | None
    """Where it lies; None where another process wrote it."""


def write_files(
    rows: Mapping[str, Rows],
    new_path: Callable[[], Path],
    ranks: Ranks | None = None,
    most_bytes: int = MOST_FILE_BYTES,
) -> list[File]:
    """Writes tensors, sorted by name, into files of at most `most_bytes` of numbers; a larger tensor has its own.

    Every process calls it with the same names; they write in turn. The files are those that `safetensors` writes of the
    same tensors, whoever holds which rows. `new_path` gives a place for each.

    Raises:
        OSError: a file cannot be written.
    """
    ranks = ranks or Ranks()
    written = []
    for number, names in enumerate(cut({name: rows[name].num_bytes for name in sorted(rows)}, most_bytes)):
        owner = number % ranks.count
        path = new_path() if ranks.index == owner else None
        _write(path, {name: rows[name] for name in names}, owner, ranks)
        written.append(File(tuple(names), path))
    return written


def cut(sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """Names, in their order, in groups that have so many bytes at most, or are of one."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, num_bytes in sizes.items():
        if groups[-1] and held + num_bytes > most_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += num_bytes
    return groups


def header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What stands before tensors in a file: its own length, then for each its type, its shape and its place.

    `tensors` are given by name with the type's name, the shape and the bytes, in the order in which they follow.
    """
    found: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        start, end = end, end + num_bytes
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as they lie in a file."""
    numbers: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


def _write(path: Path | None, rows: Mapping[str, Rows], owner: int, ranks: Ranks) -> None:
    # As safetensors orders them: what needs the widest places first.
    names = sorted(rows, key=lambda name: (-rows[name].dtype.itemsize, name))
    if path is None:
        for name in names:
            for _ in _coming(rows[name], owner, ranks):
                pass
        return
    with path.open("wb") as stream:
        stream.write(header({n: (NAMES[rows[n].dtype], rows[n].shape, rows[n].num_bytes) for n in names}))
        for name in names:
            for part in _coming(rows[name], owner, ranks):
                stream.write(raw_bytes(part))


def _coming(rows: Rows, owner: int, ranks: Ranks) -> Iterator[Tensor]:
    """The rows of a tensor in their order, to the process that writes them; the others send theirs."""
    writes = ranks.index == owner
    if not rows.shared:
        if writes:
            yield rows.own()
        return
    own = rows.own().contiguous()
    if not writes:
        if len(own):
            dist.send(own, owner)
        return
    for source, count in enumerate(row_counts(rows.shape[0], ranks.count)):
        if source == owner:
            yield own
        elif count:
            part = torch.empty((count, *rows.shape[1:]), dtype=rows.dtype, device=own.device)
            dist.recv(part, source)
            yield part
