"""For as many layers at a time as scratch holds: the boundaries before them, made complete by the workers.

Pieces are skipped where the files are there already, so boundaries need no records.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from inlay.distill.boundary import BoundaryScratch, boundary_bytes
from inlay.nas.loop.search import Search
from inlay.nas.pieces.boundaries import ADVANCE
from inlay.nas.pieces.texts import Ids

ADVANCE_SHARE = 0.1
"""Of the work on a span, as people are told: the boundaries before it."""


@dataclass(frozen=True)
class Span:
    """Layers [first, end) whose input boundaries are on scratch together.

    `share` of the search's layers are done once these are, those of earlier runs included.
    """

    first: int
    end: int
    share: float = 1.0

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


def spans_with_boundaries(
    search: Search,
    ids: Ids,
    layers: Sequence[int],
    outcomes: bool = False,
    again: bool = False,
    of_layers: int | None = None,
) -> Iterator[Span]:
    """Yields span after span with the boundaries before its layers on scratch; frees them when the next is asked for.

    Args:
        search: the running search.
        ids: the text.
        layers: the layers still to be worked on; spans without any of them are passed through, not kept.
        outcomes: keep also what each layer made of its input: the state between its subblocks, the boundary behind it.
        again: leave the boundaries where they are, since they are needed again, if there is one span.
        of_layers: how many layers there are to work on, those that are done included; by default all.

    Raises:
        PieceError: a worker failed; what is on scratch stays.
    """
    scratch = scratch_of(search, ids, outcomes)
    wanted, num_layers = set(layers), search.parent.shape.num_layers
    every_layer = num_layers if of_layers is None else of_layers
    ready = every_layer - len(wanted)
    search.reporter.kept(ready, every_layer, "layers")
    search.part(ready / every_layer)
    every = spans(search, ids, outcomes)
    stays = again and len(every) == 1
    for span in every:
        if not any(layer >= span.first for layer in wanted):
            break
        start, share = ((ready + sum(layer < cut for layer in wanted)) / every_layer for cut in (span.first, span.end))
        search.part(start + ADVANCE_SHARE * (share - start), 1)
        furthest = max(layer for layer in wanted if layer >= span.first)
        advance(search, ids, span.first, min(span.end, furthest + outcomes), outcomes)
        yield Span(span.first, min(span.end, furthest + 1), share)
        for boundary in range(span.first, span.end) if not stays else ():
            scratch.free(boundary)
    if not stays:
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
    search.run_scratch(pieces, "hidden states of the parent", "shards")
