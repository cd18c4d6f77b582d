"""Boundaries on scratch: the parent's hidden states before each layer, for as many layers at a time as scratch holds.

One piece carries one shard of the text through a span of layers, holding one layer at a time. Pieces are skipped where
the files are there already, so boundaries need no records: they are never results, only what results are made from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.files import write_error
from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.cluster.store import Store
from inlay.distill.boundary import BoundaryScratch, boundary_bytes
from inlay.distill.sweep import SLOTS, add_update
from inlay.nas.stages.search import Search, Stage
from inlay.nas.stages.source import Library, WorkerSource, parent_of
from inlay.nas.stages.text import Ids, load_ids

MICRO_BATCH_TOKENS = 4096
"""Tokens computed at a time: small enough for a core's cache, large enough for a matrix product."""


@dataclass(frozen=True)
class Span:
    """Layers [first, end) whose input boundaries are on scratch together."""

    first: int
    end: int

    @property
    def layers(self) -> range:
        """The layers of the span."""
        return range(self.first, self.end)


def scratch_of(search: Search, ids: Ids, outcomes: bool = False) -> BoundaryScratch:
    """The scratch folder of one text in this search, with or without outcomes.

    Its name holds all that its files depend on, and the workspace: searches may share one folder for scratch.
    """
    told = [search.workspace.url, search.identity, ids.digest, ids.shards, outcomes, ADVANCE.version]
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
    return BoundaryScratch(search.scratch / "boundaries" / name, len(ids.shards))


def spans(search: Search, ids: Ids, outcomes: bool = False, free_bytes: int | None = None) -> list[Span]:
    """Cuts the layers into spans whose boundaries fit into half of the free scratch."""
    num_layers = search.parent.shape.num_layers
    if free_bytes is None:
        root = scratch_of(search, ids, outcomes).folder
        root.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(root).free
    one = boundary_bytes(*ids.shape, search.parent.shape.hidden, getattr(torch, search.identity["dtype"]))
    one *= 2 if outcomes else 1
    size = max(1, min(num_layers, free_bytes // 2 // one - 1))
    return [Span(first, min(first + size, num_layers)) for first in range(0, num_layers, size)]


def spans_with_boundaries(search: Search, ids: Ids, layers: Sequence[int], outcomes: bool = False) -> Iterator[Span]:
    """Yields span after span with the boundaries before its layers on scratch; frees them when the next is asked for.

    Args:
        search: the running search.
        ids: the text.
        layers: the layers still to be worked on; spans without any of them are passed through, not kept.
        outcomes: keep also what each layer made of its input: the state between its subblocks, the boundary behind it.

    Raises:
        PieceError: a worker failed; what is on scratch stays.
    """
    scratch = scratch_of(search, ids, outcomes)
    wanted = set(layers)
    for span in spans(search, ids, outcomes):
        if not any(layer >= span.first for layer in wanted):
            break
        furthest = max(layer for layer in wanted if layer >= span.first)
        advance(search, ids, span.first, min(span.end, furthest + outcomes), outcomes)
        yield Span(span.first, min(span.end, furthest + 1))
        for boundary in range(span.first, span.end):
            scratch.free(boundary)
    shutil.rmtree(scratch.folder, ignore_errors=True)


def advance(search: Search, ids: Ids, first: int, last: int, outcomes: bool) -> None:
    """Makes boundaries `first` .. `last` of the text complete, starting from boundary `first` (0: from the ids)."""
    scratch = scratch_of(search, ids, outcomes)
    pieces = [
        search.piece(
            ADVANCE,
            f"{ids.digest[:8]}/layers {first:04d}-{last:04d}/shard {shard:05d}",
            {
                "store": search.workspace.url,
                "ids": ids.digest,
                "rows": rows,
                "shard": shard,
                "num_shards": len(ids.shards),
                "scratch": str(scratch.folder),
                "first": first,
                "last": last,
                "outcomes": outcomes,
            },
            {"ids": ids.digest, "first": first, "last": last},
        )
        for shard, rows in enumerate(ids.shards)
        if scratch.first_missing(shard, first, last) <= last or not scratch.has(first, shard)
    ]
    search.run_scratch(pieces)


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


def worker_source(arguments: dict[str, Any], library: Library) -> WorkerSource:
    """The sweep's source from a piece's arguments."""
    return WorkerSource(
        parent_of(arguments["parent"]),
        library,
        Store(arguments["store"]),
        getattr(torch, arguments["dtype"]),
        torch.device(arguments["device"]),
    )


@torch.inference_mode()
def embed_rows(source: WorkerSource, ids: str, rows: tuple[int, int]) -> torch.Tensor:
    """Boundary 0 of some sequences: their embeddings [N, S, D]."""
    ids_NS = torch.from_numpy(load_ids(source.store, ids)[rows[0] : rows[1]].astype("int64"))
    hidden: torch.Tensor = source.ends().embed(ids_NS.to(source.device))
    return hidden


def micro_batch(sequence_length: int, memory_retries: int = 0) -> int:
    """Sequences computed at a time: half as many after each attempt that ran out of memory."""
    return max(1, (MICRO_BATCH_TOKENS >> memory_retries) // sequence_length)
