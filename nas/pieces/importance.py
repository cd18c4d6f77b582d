"""How much each input channel of the parent's matrices counts: the mean of its square over a text.

Rounding takes it (nas/formats): an error in a channel that is large is multiplied by more. One pass of the whole parent
over a shard, layer by layer, without anything on scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.sweep import micro_batches
from inlay.nas.families.shape import EMBEDDING, HEAD, layer_prefix
from inlay.nas.modeling import build_layer
from inlay.nas.pieces.boundaries import embed_rows, micro_batch, worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.variants.statistics import InputSquares, Sums, gather


def gather_importance(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: the sums of squares of one shard, by whole-model names of matrices; that of a tied head too.

    Arguments: `store, ids, rows` (first, end). The blob is `sums`.
    """
    source = worker_source(arguments, Library({}))
    parent, statistic = source.parent, InputSquares()
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        hidden_NSD = embed_rows(source, arguments["ids"], arguments["rows"])
        size = micro_batch(hidden_NSD.shape[1], context.memory_retries)
        for index in range(source.num_layers):
            attention, ffn = (parent.shape.parent_entry(index, slot) for slot in ("attention", "ffn"))
            source.use(attention)
            layer = build_layer(parent.config, index, attention, ffn, parent.layer_state(index), source.dtype)
            layer = layer.to(source.device)
            total: Sums | None = None
            outputs = []
            for start, stop in micro_batches(len(hidden_NSD), size):
                where = source.context(stop - start, hidden_NSD.shape[1])
                own, output = gather(layer, hidden_NSD[start:stop], where, [statistic])
                total = own if total is None else total + own
                outputs.append(output)
            assert total is not None
            found |= {f"{layer_prefix(index)}{name}.weight": sums for name, sums in total.of(statistic).items()}
            hidden_NSD = torch.cat(outputs)
            context.progress((index + 1) / source.num_layers)
        normed_ND = source.ends().norm(hidden_NSD).flatten(0, -2).float()
        found[EMBEDDING if parent.shape.tied else HEAD] = normed_ND.square().sum(0)
    tokens = hidden_NSD.shape[0] * hidden_NSD.shape[1]
    return PieceOutput(values={}, blobs={"sums": Sums(tokens, found).to_dict()})


def means(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean squares, [row] each, from the blobs of all shards."""
    total = Sums.from_dict(parts[0])
    for part in parts[1:]:
        total = total + Sums.from_dict(part)
    return {name: sums / total.tokens for name, sums in total.tensors.items()}
