"""A worker continues prompts with a whole model, greedily.

Shapes: N prompts of one length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import StoredModel, TrainedModel, build_stored, build_whole
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK


def continue_prompts(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: what one model adds to prompts.

    Arguments: `store, prompts` (token ids), `tokens` (at most), `stops` (tokens that end a text), and what
    `TrainedModel.told` has; the parent without a blob. `values["added"]` has the tokens added to each.
    """
    model = model_of(arguments, context.scratch)
    found = greedy(model, arguments["prompts"], arguments["tokens"], arguments["stops"])
    context.progress(1.0)
    return PieceOutput(values={"added": found}, blobs={})


def model_of(arguments: dict[str, Any], scratch: Path | None) -> InlayForCausalLM:
    """The whole model that a piece is told of, as it is computed with, on the search's device.

    On `scratch` lies what was rounded before, if anywhere.
    """
    source = worker_source(arguments, Library({}), scratch)
    if arguments["blob"]:
        return build_stored(StoredModel(source, TrainedModel.from_told(arguments)))
    return build_whole(source, (PARENT_BLOCK,) * source.num_layers, source.dtype)


@torch.inference_mode()
def greedy(
    model: InlayForCausalLM, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
) -> list[list[int]]:
    """The likeliest next tokens after each prompt, at most `tokens`, up to the first that ends a text and with it.

    Prompts of one length are continued together.
    """
    added: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for places in by_length.values():
        rows = _together(model, [prompts[place] for place in places], tokens, stops)
        for place, ids in zip(places, rows, strict=True):
            added[place] = ids
    return added


def _together(
    model: InlayForCausalLM, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    own: Any = model
    cache, next_NP = own.new_cache(), torch.tensor([list(prompt) for prompt in prompts], device=own.device)
    for _ in range(tokens):
        logits_NV = own(next_NP, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        next_NP = logits_NV.argmax(-1, keepdim=True)
        for row, token in zip(rows, next_NP[:, 0].tolist(), strict=True):
            if not row or row[-1] not in stops:
                row.append(token)
        if all(row[-1] in stops for row in rows):
            break
    return rows
