"""Boundaries on scratch: the parent's hidden states before each layer, for as many layers at a time as scratch holds.

One piece carries one shard of the text through a span of layers, holding one layer at a time. Pieces are skipped where
the files are there already, so boundaries need no records: they are never results, only what results are made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inlay.cluster.files import write_error
from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.cluster.store import Store
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.sweep import SLOTS, add_update
from inlay.nas.formats.kept import FOLDER, KeptRounding
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import Library, WorkerSource, parent_of

MICRO_BATCH_TOKENS = 4096
"""Tokens computed at a time: small enough for a core's cache, large enough for a matrix product."""


def advance_shard(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Carries one shard through a span of layers of the parent, writing each boundary that is not there yet."""
    source = worker_source(arguments, Library({}))
    scratch = BoundaryScratch(Path(arguments["scratch"]), arguments["num_shards"])
    shard, first, last = arguments["shard"], arguments["first"], arguments["last"]
    start = first
    while start < last and scratch.has(start + 1, shard):
        start += 1
    if scratch.has(start, shard):
        hidden = scratch.read(start, shard).to(source.device)
    elif start == 0:
        hidden = embed_rows(source, arguments["ids"], arguments["rows"])
        _write(scratch, 0, shard, hidden.cpu())
    else:
        raise FileNotFoundError(f"{scratch.path(start, shard)}: freed before its layers were done")
    size = micro_batch(hidden.shape[1], context.memory_retries)
    with torch.inference_mode():
        for index in range(start, last):
            states = [hidden]
            for slot in SLOTS:
                module = source.subblock(index, slot, f"{slot}:parent")
                before = states[-1]
                # A copy, since a file holds no memory twice.
                states.append(before.clone() if module is None else add_update(module, slot, source, before, size))
            _, middle, hidden = states
            _write(scratch, index + 1, shard, hidden.cpu(), middle.cpu() if arguments["outcomes"] else None)
            context.progress((index + 1 - start) / (last - start))
    return PieceOutput(values={}, blobs={})


def _write(
    scratch: BoundaryScratch, boundary: int, shard: int, hidden: torch.Tensor, middle: torch.Tensor | None = None
) -> None:
    """Stores a shard of a boundary; StoreError with bytes and path when it cannot be written."""
    try:
        scratch.write(boundary, shard, hidden, middle)
    except OSError as error:
        size = hidden.nbytes + (0 if middle is None else middle.nbytes)
        raise write_error(scratch.path(boundary, shard), size, error) from error


ADVANCE = Stage("advance", 1, advance_shard)


def worker_source(arguments: dict[str, Any], library: Library, scratch: Path | None = None) -> WorkerSource:
    """The sweep's source from a piece's arguments; what it rounds is kept on a worker's scratch where that is given."""
    return WorkerSource(
        parent_of(arguments["parent"]),
        library,
        Store(arguments["store"]),
        getattr(torch, arguments["dtype"]),
        torch.device(arguments["device"]),
        arguments.get("inputs", ""),
        None if scratch is None else KeptRounding(scratch / FOLDER),
    )


def reference_source(arguments: dict[str, Any], source: WorkerSource) -> WorkerSource:
    """Of whom children learn and whom they are compared with: the original where there is one, else the parent."""
    if "original" not in arguments:
        return source
    return worker_source({**arguments, "parent": arguments["original"]}, Library({}))


@torch.inference_mode()
def embed_rows(source: WorkerSource, ids: str, rows: tuple[int, int]) -> torch.Tensor:
    """Boundary 0 of some sequences: their embeddings [N, S, D]."""
    ids_NS = torch.from_numpy(load_ids(source.store, ids)[rows[0] : rows[1]].astype("int64"))
    hidden: torch.Tensor = source.ends().embed(ids_NS.to(source.device))
    return hidden


def micro_batch(sequence_length: int, memory_retries: int = 0) -> int:
    """Sequences computed at a time: half as many after each attempt that ran out of memory."""
    return max(1, (MICRO_BATCH_TOKENS >> memory_retries) // sequence_length)
