"""A worker writes text with the parent: where there is none, a model's own words show what it knows.

Shapes: N sequences, S positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.pieces.assembled import build_whole
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK


@torch.inference_mode()
def sample_sequences(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """N sequences of S tokens in the blob `ids`, each from its opening on.

    Where the model ends what it writes, the next opening follows: of a chat, the turns' in their order. What is drawn
    follows from the piece's seed and each row's place, whatever else is computed beside it.
    """
    source = worker_source(arguments, Library({}))
    num_rows, length = int(arguments["rows"]), int(arguments["length"])
    openings: list[list[int]] = arguments["openings"]
    model: Any = build_whole(source, (PARENT_BLOCK,) * source.parent.shape.num_layers, source.dtype)
    model.eval()
    draws_NS = np.random.default_rng(context.seed).random((num_rows, length))
    ids_NS = np.zeros((num_rows, length), np.int32)
    turns = [0] * num_rows
    forced = [list(openings[0]) for _ in range(num_rows)]
    cache, logits_NV = model.new_cache(), None
    for place in range(length):
        written = (
            np.zeros(num_rows, np.int64) if logits_NV is None else _drawn(logits_NV, draws_NS[:, place], arguments)
        )
        for row in range(num_rows):
            if not forced[row] and written[row] == arguments["end"]:
                turns[row] = (turns[row] + 1) % len(openings)
                forced[row] = list(openings[turns[row]])
            ids_NS[row, place] = forced[row].pop(0) if forced[row] else written[row]
        if place + 1 < length:
            token_N1 = torch.from_numpy(ids_NS[:, place : place + 1].astype(np.int64)).to(source.device)
            logits_NV = model(token_N1, past_key_values=cache, use_cache=True).logits[:, -1]
        context.progress((place + 1) / length)
    return PieceOutput(values={"tokens": ids_NS.size}, blobs={"ids": {"ids": torch.from_numpy(ids_NS)}})


def _drawn(logits_NV: torch.Tensor, draws_N: np.ndarray[Any, Any], arguments: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A token for each row by the inverse of its cumulated probabilities; ids without a token are never drawn."""
    known = logits_NV[:, : arguments["vocabulary"]].double() / arguments["temperature"]
    cumulated_NV = known.softmax(-1).cumsum(-1)
    wanted_N1 = torch.from_numpy(draws_N).to(cumulated_NV.device)[:, None] * cumulated_NV[:, -1:]
    found: np.ndarray[Any, Any] = torch.searchsorted(cumulated_NV, wanted_N1, right=True)[:, 0].cpu().numpy()
    return found.clip(max=known.shape[1] - 1)
