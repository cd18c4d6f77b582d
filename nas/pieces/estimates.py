"""What rounding costs, estimated for all formats of all subblocks from one backward pass of the parent.

To second order the KL of a change d of a matrix is half the expected square of what it changes of the log-likelihood of
a token drawn from the parent itself. What a matrix reads and the gradient of what it gives are taken as independent
(K-FAC, arXiv 1503.05671), and so are its outputs among each other, which leaves ½ Σ_r E[g_r²] (d E[x x'] d')_rr: one
number an output from the backward pass, and the mean of X'X that rounding is fitted by. Its error is known from blocks
whose true KL is taken (stages/estimates.py).
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
from inlay.nas.pieces.weights import Library, WorkerSource, rounded_state
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.variants import parse_variant


def estimate_rounding(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: the estimates of some sequences, summed over their tokens.

    Arguments: `store, ids, rows` (first, end), `inputs`, `labels` (of each layer). `values["nats"]` has for each layer
    by label one number a matrix, by its name; `values["tokens"]` the tokens that they are sums over.
    """
    source = worker_source(arguments, Library({}), context.scratch)
    first, end = arguments["rows"]
    all_ids_NS = load_ids(source.store, arguments["ids"])
    ids_NS = torch.from_numpy(all_ids_NS[first:end].astype("int64")).to(source.device)
    model = build_whole(source, tuple([PARENT_BLOCK] * source.num_layers), source.dtype)
    model.requires_grad_(False)
    # What its gradients flow back to: no weight needs one.
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    squares: dict[str, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_full_backward_hook(_adds_squares(squares, f"{layer_prefix(index)}{name}.weight"))
    drawn = torch.Generator(source.device).manual_seed(context.seed)
    for number, ids_S in enumerate(ids_NS):
        _backward(model, ids_S, drawn)
        context.progress(0.5 * (number + 1) / len(ids_NS))
    nats: list[dict[str, dict[str, float]]] = [{} for _ in range(source.num_layers)]
    # Shards begin at different layers: what one of them has rounded the others of its machine only read.
    begun = source.num_layers * first // len(all_ids_NS)
    for done in range(source.num_layers):
        index = (begun + done) % source.num_layers
        nats[index] = {label: _half_sums(source, index, label, squares) for label in arguments["labels"][index]}
        context.progress(0.5 + 0.5 * (done + 1) / source.num_layers)
    return PieceOutput(values={"nats": nats, "tokens": len(ids_NS) * (ids_NS.shape[1] - 1)})


def _adds_squares(squares: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, of_inputs: Any, of_outputs: tuple[Tensor, ...]) -> None:
        own_R = of_outputs[0].flatten(0, -2).float().square().sum(0)
        squares[name] = squares[name] + own_R if name in squares else own_R

    return hook


def _backward(model: Any, ids_S: Tensor, drawn: torch.Generator) -> None:
    """Gradients of the negative log-likelihood of tokens that the model itself draws after each position."""
    logits_SV = model(ids_S[None]).logits[0, :-1].float()
    labels_S = torch.multinomial(torch.softmax(logits_SV.detach(), -1), 1, generator=drawn).squeeze(1)
    torch.nn.functional.cross_entropy(logits_SV, labels_S, reduction="sum").backward()  # type: ignore[no-untyped-call]


def _half_sums(source: WorkerSource, index: int, label: str, squares: dict[str, Tensor]) -> dict[str, float]:
    variant = parse_variant(label)
    told = source.matrix_inputs.within(index, variant)
    own = source.parent.slot_state(index, variant.slot)
    found = {}
    for name, tensor in rounded_state(own, variant.form, told, source.kept).items():
        if tensor.ndim == 2:
            inputs = told.get(name, tensor.shape[1])
            assert inputs is not None
            harm_R = inputs.harm(tensor.float() - own[name].float())
            found[name] = float((squares[f"{layer_prefix(index)}{name}"].cpu() * harm_R).sum()) / 2
    return found
