"""The text of a piece: its tokens, the states that it starts from, and how much of it is held at once.

Layers are read once for all that is held, so that is as much as memory allows; what is computed at a time, and with it
every bit, does not depend on it.

Shapes: N sequences, S positions, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.cluster.store import Store
from inlay.distill.boundary import BoundaryScratch
from inlay.nas.modeling import Ends
from inlay.nas.pieces.boundaries import micro_batch
from inlay.nas.pieces.texts import load_documents, load_ids
from inlay.nas.pieces.weights import WorkerSource

HELD_BYTES = 1 << 30
"""What a worker on CPUs may hold of hidden states; on a GPU it is a share of what is free there."""
FREE_SHARE = 0.25


class PieceText:
    """The sequences of all shards of a piece, one after the other.

    Args:
        source: embeds them, and its store has them.
        arguments: `ids`, `rows` (one (first, end) a shard) and, for states behind the embedding, `shards`,
            `num_shards` and `scratch`; `documents`, where sums by document are wanted.
        ends: of the source.
    """

    def __init__(self, source: WorkerSource, arguments: Mapping[str, Any], ends: Ends) -> None:
        self._source, self._arguments, self._ends = source, arguments, ends
        self._rows: list[tuple[int, int]] = [(first, end) for first, end in arguments["rows"]]
        self._held: tuple[int, Tensor] | None = None
        ids = load_ids(source.store, arguments["ids"])
        self.ids_NS = torch.from_numpy(np.concatenate([ids[first:end] for first, end in self._rows]).astype("int64"))
        parts = [documents_of(source.store, arguments, rows) for rows in self._rows]
        own = [part for part in parts if part is not None]
        self.documents_NS = torch.cat(own) if own else None

    def states(self, layer: int, start: int, end: int) -> Tensor:
        """What a layer reads of sequences [start, end), [N, S, D] on the source's device.

        Raises FileNotFoundError where that boundary is not on scratch.
        """
        if layer == 0:
            embedded: Tensor = self._ends.embed(self.ids_NS[start:end].to(self._source.device))
            return embedded
        parts, before = [], 0
        for number, (first, last) in enumerate(self._rows):
            here = before + last - first
            if before < end and start < here:
                parts.append(self._boundary(layer, number)[max(start - before, 0) : end - before])
            before = here
        return torch.cat(parts).to(self._source.device)

    def _boundary(self, layer: int, number: int) -> Tensor:
        """A shard's, kept until another is asked for: two runs may share one."""
        if self._held is None or self._held[0] != number:
            scratch = BoundaryScratch(Path(self._arguments["scratch"]), self._arguments["num_shards"])
            self._held = (number, scratch.read(layer, self._arguments["shards"][number]))
        return self._held[1]


def documents_of(store: Store, arguments: Mapping[str, Any], rows: Sequence[int]) -> Tensor | None:
    """The document of each token of some sequences, [N, S]; None where the piece is not told of documents."""
    if not arguments.get("documents"):
        return None
    return torch.from_numpy(load_documents(store, arguments["documents"])[0][rows[0] : rows[1]].astype("int64"))


def sequences_held(source: WorkerSource, length: int, branches: int) -> int:
    """Sequences whose hidden states, of so many branches, a worker may hold at once."""
    room = HELD_BYTES
    if source.device.type == "cuda":
        room = int(FREE_SHARE * torch.cuda.mem_get_info(source.device)[0])
    return room // (branches * length * source.parent.shape.hidden * source.dtype.itemsize)


def shares_of(num: int, length: int, memory_retries: int, at_once: int) -> list[tuple[int, int, int]]:
    """(start, end, micro-batch) of the runs of sequences whose hidden states are held at once.

    As many as may be held at first, half as many after each attempt that ran out of memory. Runs are whole
    micro-batches for as long as they can be, so that every product has the same shape and every number the same bits;
    then these halve.
    """
    size = micro_batch(length)
    whole = max(1, min(-(-num // size), at_once // size))
    held = whole >> memory_retries
    if held == 0 and memory_retries:
        size = micro_batch(length, memory_retries - whole.bit_length() + 1)
    run = max(1, held) * size
    return [(start, min(start + run, num), size) for start in range(0, num, run)]
