"""What rounding costs, estimated for all formats of all subblocks from one backward pass of the parent.

To second order the KL of a change d of the weights is ½ E[(g·d)²], where g is the gradient of the log-likelihood of a
token drawn from the parent itself. Rounding errors of different numbers are as good as independent, so that what is
left is ½ Σ E[g²] d²: the gradients' squares are summed once, and every format costs one product. Its error is known
from blocks whose true KL is taken (stages/estimates.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.families import layer_prefix
from inlay.nas.pieces.assembled import build_whole
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import Library, rounded_state
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.variants import parse_variant


def estimate_rounding(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: the estimates of some sequences, summed over their tokens.

    Arguments: `store, ids, rows` (first, end), `labels` (of each layer). `values["nats"]` has for each layer one number
    a label, `values["tokens"]` the tokens that they are sums over.
    """
    source = worker_source(arguments, Library({}), context.scratch)
    first, end = arguments["rows"]
    all_ids_NS = load_ids(source.store, arguments["ids"])
    ids_NS = torch.from_numpy(all_ids_NS[first:end].astype("int64")).to(source.device)
    model = build_whole(source, tuple([PARENT_BLOCK] * source.num_layers), source.dtype)
    model.requires_grad_(False)
    matrices = {
        f"{layer_prefix(index)}{name}": own
        for index, layer in enumerate(model.model.layers)
        for name, own in layer.named_parameters()
        if own.ndim == 2
    }
    squares = {name: torch.zeros_like(own) for name, own in matrices.items()}
    for own in matrices.values():
        own.requires_grad_(True)
    drawn = torch.Generator(source.device).manual_seed(context.seed)
    for number, ids_S in enumerate(ids_NS):
        _backward(model, ids_S, drawn)
        for name, own in matrices.items():
            assert own.grad is not None
            squares[name].addcmul_(own.grad, own.grad)
            own.grad = None
        context.progress(0.5 * (number + 1) / len(ids_NS))
    nats: list[list[float]] = [[] for _ in range(source.num_layers)]
    # Shards begin at different layers: what one of them has rounded the others of its machine only read.
    begun = source.num_layers * first // len(all_ids_NS)
    for done in range(source.num_layers):
        index = (begun + done) % source.num_layers
        nats[index] = [_half_sum(source, index, label, squares) for label in arguments["labels"][index]]
        context.progress(0.5 + 0.5 * (done + 1) / source.num_layers)
    return PieceOutput(values={"nats": nats, "tokens": len(ids_NS) * (ids_NS.shape[1] - 1)})


def _backward(model: Any, ids_S: Tensor, drawn: torch.Generator) -> None:
    """Gradients of the negative log-likelihood of tokens that the model itself draws after each position."""
    logits_SV = model(ids_S[None]).logits[0, :-1].float()
    labels_S = torch.multinomial(torch.softmax(logits_SV.detach(), -1), 1, generator=drawn).squeeze(1)
    torch.nn.functional.cross_entropy(logits_SV, labels_S, reduction="sum").backward()  # type: ignore[no-untyped-call]


def _half_sum(source: Any, index: int, label: str, squares: dict[str, Tensor]) -> float:
    variant = parse_variant(label)
    own = source.parent.slot_state(index, variant.slot)
    total = 0.0
    for name, tensor in rounded_state(own, variant.form, source.weighing(index), source.kept).items():
        if tensor.ndim == 2:
            error = tensor.to(source.device).float() - own[name].to(source.device).float()
            total += float((squares[f"{layer_prefix(index)}{name}"] * error.square()).sum())
    return total / 2
