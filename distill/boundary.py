"""Scratch for boundaries: the parent's hidden states before each layer, one file a shard of the text.

Boundary `i` is the input of layer `i`; boundary `num_layers` is the output of the last layer, before the final norm.
The file of boundary `i` may also hold how layer `i - 1` came to it: the state between its two subblocks.
Files are complete or absent (written beside and renamed), so any worker may write one again and a resumed search
finds what is there. Nothing here is a result: all of it can be computed again from the parent and the text.

Shapes: N sequences of a shard, S positions, D model width.
"""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class BoundaryScratch:
    """The boundaries of one text under one parent, in a folder that every worker of the search can read.

    Args:
        folder: the folder of this text's boundaries.
        num_shards: how many shards the text is cut into; fixed by the job, never by the cluster.
    """

    folder: Path
    num_shards: int

    def path(self, boundary: int, shard: int) -> Path:
        """Where a shard of a boundary lies."""
        return self.folder / f"boundary-{boundary:04d}" / f"shard-{shard:05d}.safetensors"

    def has(self, boundary: int, shard: int) -> bool:
        """Whether that shard of the boundary is complete."""
        return self.path(boundary, shard).exists()

    def complete(self, boundary: int) -> bool:
        """Whether every shard of the boundary is there."""
        return all(self.has(boundary, shard) for shard in range(self.num_shards))

    def write(self, boundary: int, shard: int, hidden_NSD: Tensor, middle_NSD: Tensor | None = None) -> None:
        """Stores a shard [N, S, D] in its own dtype, with the state between the subblocks of the layer before it.

        Raises OSError with its number, reason and path, such as when the disk is full.
        """
        path = self.path(boundary, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            states = {"hidden": hidden_NSD} if middle_NSD is None else {"hidden": hidden_NSD, "middle": middle_NSD}
            save_file({name: state.contiguous() for name, state in states.items()}, beside)
            os.replace(beside, path)
        except SafetensorError as error:
            # safetensors tells the system's reason only in its text.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        finally:
            beside.unlink(missing_ok=True)

    def read(self, boundary: int, shard: int) -> Tensor:
        """A shard [N, S, D] of a boundary; raises FileNotFoundError when it was not written or already freed."""
        return self._read(boundary, shard, "hidden")

    def read_middle(self, layer: int, shard: int) -> Tensor:
        """The state [N, S, D] between the subblocks of a layer, from the boundary behind it; raises as `read`."""
        return self._read(layer + 1, shard, "middle")

    def _read(self, boundary: int, shard: int, name: str) -> Tensor:
        path = self.path(boundary, shard)
        if not path.exists():
            raise FileNotFoundError(f"{path}: this boundary was never written or is already freed")
        with safe_open(path, framework="pt") as file:
            state: Tensor = file.get_tensor(name)
        return state

    def free(self, boundary: int) -> None:
        """Deletes a boundary; harmless when another did already."""
        folder = self.folder / f"boundary-{boundary:04d}"
        for file in folder.glob("*") if folder.exists() else ():
            file.unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()

    def first_missing(self, shard: int, first: int, last: int) -> int:
        """The lowest boundary in (first, last] that this shard lacks, or `last + 1` when it has all of them."""
        return next((b for b in range(first + 1, last + 1) if not self.has(b, shard)), last + 1)


def boundary_bytes(num_sequences: int, sequence_length: int, hidden: int, dtype: torch.dtype) -> int:
    """Bytes of one whole boundary on disk, without the headers."""
    return num_sequences * sequence_length * hidden * dtype.itemsize
