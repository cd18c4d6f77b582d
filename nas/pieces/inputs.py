"""What the parent's matrices read: the mean of X'X over a text, by which rounding is fitted (nas/formats/fitting.py).

One piece a layer, from the boundary before it. A blob holds what one layer's matrices read, each once: queries, keys
and values read the same. A small blob, the manifest, says where what each matrix reads lies; its digest is what a
search tells its pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.sweep import micro_batches
from inlay.nas.families.shape import EMBEDDING, HEAD, layer_prefix
from inlay.nas.modeling import InlayLayer, build_layer
from inlay.nas.pieces.boundaries import micro_batch, worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.variants.statistics import keep_input, rows_of


@torch.inference_mode()
def gather_inputs(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: what one layer's matrices read; with the last layer what the head does.

    Arguments: `store, scratch, ranges, layer`. `values["readers"]` has for each matrix of the layer, by its whole-model
    name, the tensor of the blob `products`.
    """
    source = worker_source(arguments, Library({}))
    index, parent, ranges = arguments["layer"], source.parent, arguments["ranges"]
    attention, ffn = (parent.shape.parent_entry(index, slot) for slot in ("attention", "ffn"))
    source.use(attention)
    layer = build_layer(parent.config, index, attention, ffn, parent.layer_state(index), source.dtype)
    layer = layer.to(source.device)
    is_last = index == source.num_layers - 1
    norm, head = source.ends().norm if is_last else None, EMBEDDING if parent.shape.tied else HEAD
    scratch = BoundaryScratch(Path(arguments["scratch"]), len(ranges))
    total: dict[str, Tensor] = {}
    readers: dict[str, str] = {}
    tokens = 0
    for shard in range(len(ranges)):
        hidden_NSD = scratch.read(index, shard).to(source.device)
        for start, stop in micro_batches(len(hidden_NSD), micro_batch(hidden_NSD.shape[1], context.memory_retries)):
            where = source.context(stop - start, hidden_NSD.shape[1])
            output, seen = _read(layer, hidden_NSD[start:stop], where)
            named = {f"{layer_prefix(index)}{name}.weight": inputs for name, inputs in seen.items()}
            if norm is not None:
                named[head] = norm(output)
            readers = _readers(named)
            for name in dict.fromkeys(readers.values()):
                rows = rows_of(named[name])
                total[name] = total[name].addmm_(rows.T, rows) if name in total else rows.T @ rows
            tokens += output.shape[0] * output.shape[1]
        context.progress((shard + 1) / len(ranges))
    means = {name: (products / tokens).cpu() for name, products in total.items()}
    return PieceOutput(values={"readers": readers, "tokens": tokens}, blobs={"products": means})


def _read(layer: InlayLayer, hidden_BSD: Tensor, context: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A layer's output, and what each of its matrices read."""
    seen: dict[str, Tensor] = {}
    matrices = [(name, module) for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(keep_input(seen, name)) for name, module in matrices]
    try:
        output: Tensor = layer(hidden_BSD, context)
        return output, seen
    finally:
        for hook in hooks:
            hook.remove()


def _readers(seen: Mapping[str, Tensor]) -> dict[str, str]:
    """For each matrix the first that reads the same."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(inputs), name) for name, inputs in seen.items()}
