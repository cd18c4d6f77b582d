"""Comparing next-token distributions with the parent's: what score, assemble, baselines and evaluate have in common.

Shapes: C architectures, N sequences, S positions, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.sweep import micro_batches, sweep
from inlay.kernels import compare_next_token
from inlay.nas.modeling import Ends
from inlay.nas.pieces.assembled import StoredModel, TrainedModel
from inlay.nas.pieces.boundaries import micro_batch, reference_source, worker_source
from inlay.nas.pieces.boundaries import micro_batch as sequences_at_once
from inlay.nas.pieces.by_document import ByDocument, by_document, document_sums
from inlay.nas.pieces.piece_text import PieceText, documents_of, sequences_held, shares_of
from inlay.nas.pieces.rounded_cache import as_run
from inlay.nas.pieces.standard_error import Values, standard_error
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, blocks_of, ends_form, is_original

MEASURES = ("kl", "child_nll", "agree")


@dataclass(frozen=True)
class Difference:
    """How far one mean over a text is above another on the same text, with the error of their paired differences.

    Args:
        nats: the first minus the second.
        standard_error: of `nats`; None where one sequence does not tell it.
    """

    nats: float
    standard_error: float | None

    @staticmethod
    def of(first_N: Values, second_N: Values) -> Difference:
        """Of two per-sequence vectors in the order of the text."""
        return Difference(float((first_N - second_N).mean()), standard_error(first_N - second_N))

    @property
    def within_noise(self) -> bool:
        """Whether twice its error covers it; an unknown error covers nothing."""
        return abs(self.nats) <= 2 * (self.standard_error or 0.0)


@dataclass(frozen=True)
class Comparison:
    """One architecture against the parent; means over tokens, errors over sequences.

    Args:
        kl_nats: KL(parent ‖ child) of the next token, nats per token.
        standard_error: of `kl_nats`, over sequences; None where there is only one.
        lm_loss_change: child's loss minus the parent's, nats per token.
        top1_agreement: share of tokens where both have the same first choice.
        perplexity: exp of the child's loss.
        kl_N: the KL of each sequence, in the order of the text; for differences on the same text.
        documents: the same by documents, where the text tells them apart.
    """

    kl_nats: float
    standard_error: float | None
    lm_loss_change: float
    top1_agreement: float
    perplexity: float
    kl_N: Values = field(repr=False, compare=False)
    documents: ByDocument | None = field(default=None, repr=False, compare=False)

    def figures(self) -> dict[str, float | None]:
        """What tables and files hold of it: everything but the sequences and the documents."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.compare}

    def above(self, other: Comparison) -> Difference:
        """How much more KL it has than another on the same text."""
        return Difference.of(self.kl_N, other.kl_N)


def compare(
    ends: Ends,
    ids_NS: Tensor,
    parent_NSD: Tensor,
    children: Sequence[Tensor],
    child_ends: Sequence[Ends] | None = None,
    micro_batch: int | None = None,
    documents_NS: Tensor | None = None,
) -> dict[str, Tensor]:
    """Per-sequence means of every measure: `kl`, `child_nll`, `agree` [C, N] and `parent_nll` [N], float64.

    Args:
        ends: final norm and head of the parent.
        ids_NS: the tokens; position t is judged on token t + 1.
        parent_NSD: the parent's last layer output, before the final norm.
        children: the architectures' last layer outputs.
        child_ends: the children's own norms and heads; by default they keep the parent's.
        micro_batch: sequences compared at a time; by default as many as are computed at a time.
        documents_NS: the document of each token: then sums by document are there too (`document_sums`).
    """
    num, length = ids_NS.shape
    norms = child_ends if child_ends is not None else [ends] * len(children)
    heads = [own.head_VD for own in child_ends] if child_ends is not None else None
    parts: list[dict[str, Tensor]] = []
    for start, end in micro_batches(num, micro_batch or sequences_at_once(length)):
        labels = ids_NS[start:end, 1:].reshape(-1).to(parent_NSD.device)
        parent_ND, *child_ND = (
            own.norm(hidden[start:end, :-1]).reshape(labels.numel(), -1)
            for own, hidden in zip((ends, *norms), (parent_NSD, *children), strict=True)
        )
        result = compare_next_token(parent_ND, child_ND, ends.head_VD, labels, heads)
        shape = (end - start, length - 1)
        values = {name: getattr(result, name).double().reshape(len(children), *shape) for name in MEASURES}
        values["parent_nll"] = result.parent_nll.double().reshape(shape)
        means = {name: each.mean(-1).cpu() for name, each in values.items()}
        own_documents = {} if documents_NS is None else document_sums(values, documents_NS[start:end])
        parts.append({**means, **own_documents})
    return joined(parts)


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What was seen of several runs of sequences, as one."""
    return {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}


def compare_architectures(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: architectures against the parent on some shards, from one boundary on.

    Arguments: `store, ids, rows` (one (first, end) a shard), `architectures` (per architecture a list of
    [attention label, ffn label]), `first_layer`, `library` (digests), and for `first_layer` above 0 also `scratch`.
    With `documents`, the digest of the text's, also sums by document; with `caches` each architecture runs with its own
    ("": as it is). Where the parent is a child of an `original`, everything is against that one, which is carried
    through from the tokens on; it may stand among the architectures.
    The blob `sequences` holds per-sequence means; `values["labels"]` names its rows.
    """
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    source = worker_source(arguments, library, context.scratch)
    reference = reference_source(arguments, source)
    ends = source.ends()
    reference_ends = ends if reference is source else reference.ends()
    num_layers, first = source.num_layers, arguments["first_layer"]
    parent_choice: Blocks = tuple([PARENT_BLOCK] * num_layers)
    given = [blocks_of(each) for each in arguments["architectures"]]
    caches = arguments.get("caches") or [""] * len(given)
    swept = [(each, cache) for each, cache in zip(given, caches, strict=True) if not is_original(each)]
    architectures = [(parent_choice, ""), *swept]
    forms = [ends_form(each) for each in given]
    own = {form: source.ends(form) if form else ends for form in {None, *forms}}
    text = PieceText(source, arguments, ends)
    num, length = text.ids_NS.shape
    branches = len(architectures) + 1  # what a subblock makes of a state is held beside it
    at_once = sequences_held(source, length, branches)
    parts: list[dict[str, Tensor]] = []
    for start, end, size in shares_of(num, length, context.memory_retries, at_once):
        ids_NS = text.ids_NS[start:end]
        own_NS = None if text.documents_NS is None else text.documents_NS[start:end]
        with torch.inference_mode():
            parent, *others = _swept(source, architectures, own, ids_NS, text.states(first, start, end), first, size)
            if reference is not source:
                (parent,) = sweep(reference, [parent_choice], reference_ends.embed(ids_NS.to(source.device)), 0, size)
            found = iter(others)
            children = [parent if is_original(each) else next(found) for each in given]
            own_ends = [
                reference_ends if is_original(each) else own[form] for each, form in zip(given, forms, strict=True)
            ]
            parts.append(compare(reference_ends, ids_NS, parent, children, own_ends, size, own_NS))
        context.progress(end / num)
    return PieceOutput(values={"labels": list(arguments["labels"])}, blobs={"sequences": joined(parts)})


def _swept(
    source: WorkerSource,
    architectures: Sequence[tuple[Blocks, str]],
    ends: Mapping[str | None, Ends],
    ids_NS: Tensor,
    hidden_NSD: Tensor,
    first: int,
    size: int,
) -> list[Tensor]:
    """The last layer's outputs of all, each with its cache; those with an embedding of their own start from the tokens,
    and those that run alike are swept together."""
    outputs: dict[int, Tensor] = {}
    runs = [(ends_form(each), cache) for each, cache in architectures]
    for form, cache in dict.fromkeys(runs):
        places = [place for place, own in enumerate(runs) if own == (form, cache)]
        start = hidden_NSD if form is None else ends[form].embed(ids_NS.to(source.device))
        group = [architectures[place][0] for place in places]
        found = sweep(as_run(source, cache), group, start, 0 if form else first, size)
        outputs |= dict(zip(places, found, strict=True))
    return [outputs[place] for place in range(len(architectures))]


def summaries(
    labels: Sequence[str], sequences: Sequence[dict[str, Tensor]], sources_D: Sequence[int] | None = None
) -> dict[str, Comparison]:
    """Comparisons by label from the blobs of one or several pieces over the same labels, in shard order.

    With `sources_D`, the source of each document of the text, also by documents.
    """
    found = joined(sequences)
    return {label: _summary(found, row, sources_D) for row, label in enumerate(labels)}


def _summary(found: Mapping[str, Tensor], row: int, sources_D: Sequence[int] | None) -> Comparison:
    kl_N: Values = found["kl"][row].numpy()
    nll = float(found["child_nll"][row].mean())
    return Comparison(
        kl_nats=float(kl_N.mean()),
        standard_error=standard_error(kl_N),
        lm_loss_change=nll - float(found["parent_nll"].mean()),
        top1_agreement=float(found["agree"][row].mean()),
        perplexity=math.exp(min(nll, 700.0)),
        kl_N=kl_N,
        documents=None if sources_D is None else by_document(found, row, sources_D),
    )


@torch.inference_mode()
def evaluate_model(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """One stored model against the parent on one shard, both carried through layer by layer.

    With `kv_format` the model runs with such a cache.
    """
    source = worker_source(arguments, Library({}), context.scratch)
    model = TrainedModel.from_told(arguments)
    stored = StoredModel(source, model)
    first, end = arguments["rows"]
    ids_NS = torch.from_numpy(load_ids(source.store, arguments["ids"])[first:end].astype("int64")).to(source.device)
    size = micro_batch(ids_NS.shape[1], context.memory_retries)
    reference = reference_source(arguments, source)
    parent_ends, child_ends = reference.ends(), stored.ends()
    (parent_NSD,) = sweep(reference, [[PARENT_BLOCK] * source.num_layers], parent_ends.embed(ids_NS), 0, size)
    context.progress(0.5)
    run = as_run(stored, arguments.get("kv_format", ""))
    (child_NSD,) = sweep(run, [model.architecture], child_ends.embed(ids_NS), 0, size)
    documents_NS = documents_of(source.store, arguments, (first, end))
    sequences = compare(parent_ends, ids_NS, parent_NSD, [child_NSD], [child_ends], documents_NS=documents_NS)
    return PieceOutput(values={}, blobs={"sequences": sequences})


def tensors_of(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a blob of comparisons."""
    from safetensors.torch import load_file

    return dict(load_file(path))
