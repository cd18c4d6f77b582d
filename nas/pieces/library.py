"""The training of one layer's variants on the parent's own inputs to it: what becomes the block library.

A training may come in stretches: a later one goes on from the weights that the one before left, on the text that
follows, with a schedule and a rate of its own.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput, Progress
from inlay.distill.boundary import BoundaryScratch
from inlay.distill.branches import Branch, LayerBatch, Span
from inlay.distill.local import BranchResult, train_layer
from inlay.distill.rates import plan_local_trials
from inlay.distill.settings import LocalSettings
from inlay.distill.text import training_order
from inlay.nas.families.shape import SLOTS, Shape, subblock_tensors
from inlay.nas.modeling import build_layer
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.tables.architecture import block_of, choice_label, num_layers
from inlay.nas.variants import Place, Variant, parse_variant
from inlay.nas.variants.run import run_state
from inlay.nas.variants.statistics import Sums


def distill_layer(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: trains the variants of one layer on the parent's own inputs to it.

    With `before` it is a later stretch: the `steps` that lie behind, and by label the `weights` that they led to.
    """
    source = worker_source(arguments, Library({}))
    parent, index = source.parent, arguments["layer"]
    state = parent.layer_state(index)
    entries = {slot: parent.shape.parent_entry(index, slot) for slot in ("attention", "ffn")}
    source.use(entries["attention"])
    parent_layer = build_layer(parent.config, index, entries["attention"], entries["ffn"], state, source.dtype)
    parent_layer = parent_layer.to(source.device)
    sums = Sums.from_dict(source.store_state(arguments["sums"])) if arguments["sums"] else Sums()
    choices = trained_together(arguments["variants"])
    following = following_layers(source, index, choices)
    groups = in_groups(choices, 2**context.memory_retries)
    # A group's variants are trained as if the others were not there: less memory, the same weights to the last bit.
    # Only when every variant is alone is the batch cut, too.
    parts = max(1, 2**context.memory_retries // max(1, len(groups)))
    settings = LocalSettings(**arguments["settings"])
    results: list[BranchResult] = []
    told = _Told(context.progress, len(groups), settings, _begun(arguments))
    for group in groups:
        if before := arguments.get("before"):
            branches = [_gone_on(source, index, label, before) for label in group]
        else:
            branches = [branch_of(source, index, label, state, sums) for label in group]
        batches = _Batches(arguments, source.device, source.context)
        cut = cutter(parts, source)
        results += train_layer(parent_layer, branches, batches, settings, told.step, cut, told.trial, following)
        told.groups_done += 1
    dtype = getattr(torch, parent.shape.dtype)
    values: dict[str, Any] = {"layer": index, "variants": {}}
    blobs: dict[str, Any] = {}
    for result in results:
        told_of_it = {
            "status": result.status,
            "reason": result.reason,
            "kept": result.kept,
            "start_loss": _finite(result.start_loss),
            "loss": _finite(result.final_loss),
            "learning_rate": result.learning_rate,
            "trials": [asdict(trial) for trial in result.trials],
            "curve": [_finite(loss) for loss in result.curve],
        }
        values["variants"] |= dict.fromkeys(block_of(result.label), told_of_it)
        for label, state in trained_states(parent.shape, index, result).items():
            blobs[label] = {name: tensor.to(dtype).cpu() for name, tensor in state.items()}
    return PieceOutput(values=values, blobs=blobs)


def cutter(parts: int, source: WorkerSource) -> Callable[[LayerBatch], list[LayerBatch]] | None:
    """What cuts batches, None where they stay whole."""
    if parts == 1:
        return None

    def cut(batch: LayerBatch) -> list[LayerBatch]:
        states = [state.chunk(parts) for state in (batch.hidden_BSD, *(batch.outcome or ()))]
        return [
            LayerBatch(
                hidden, source.context(len(hidden), hidden.shape[1]), (outcome[0], outcome[1]) if outcome else None
            )
            for hidden, *outcome in zip(*states, strict=True)
        ]

    return cut


def in_groups(labels: Sequence[str], count: int) -> list[list[str]]:
    """The labels in at most `count` groups of neighbours, as even as can be."""
    count = min(count, len(labels))
    cuts = [len(labels) * number // count for number in range(count + 1)] if count else []
    return [list(labels[start:end]) for start, end in itertools.pairwise(cuts)]


def trained_together(labels: Sequence[str]) -> list[str]:
    """What is trained at a layer: variants, and of runs of layers both subblocks as one."""
    variants = map(parse_variant, labels)
    return list(dict.fromkeys(choice_label(v.block) if v.run else v.label for v in variants))


def following_layers(source: WorkerSource, index: int, choices: Sequence[str]) -> list[Any]:
    """The parent's layers behind one, as many as its longest run of layers has."""
    parent, most = source.parent, max((num_layers(block_of(choice)) for choice in choices), default=1)
    found = []
    for layer in range(index + 1, index + most):
        attention, ffn = (parent.shape.parent_entry(layer, slot) for slot in SLOTS)
        source.use(attention)
        state = parent.layer_state(layer)
        found.append(build_layer(parent.config, layer, attention, ffn, state, source.dtype).to(source.device))
    return found


def trained_states(shape: Shape, index: int, result: BranchResult) -> dict[str, dict[str, Tensor]]:
    """The tensors of what was trained by the labels of its subblocks; none where it failed."""
    if result.status != "trained":
        return {}
    labels = block_of(result.label)
    if len(labels) == 1:
        return {result.label: result.state}
    found = {}
    for variant in map(parse_variant, labels):
        names = subblock_tensors(shape, variant.slot, variant.entry(shape, index))
        found[variant.label] = {name: result.state[name] for name in names}
    return found


def branch_of(source: WorkerSource, index: int, label: str, state: Any, sums: Sums) -> Branch:
    """A variant, or a run of layers, with its training-free start, in float32."""
    if num_layers(block_of(label)) > 1:
        return _run_branch(source, index, label, sums)
    shape, variant = source.parent.shape, parse_variant(label)
    # Copies: training changes them in place, and the parent's own must stay as they are.
    own = {
        name: tensor.to(torch.float32, copy=True)
        for name, tensor in Place(shape, index, variant.slot).tensors(state).items()
    }
    return _branch(source, index, variant, variant.start(shape, index, own, sums))


def _run_branch(source: WorkerSource, index: int, label: str, sums: Sums) -> Branch:
    """One layer in place of several: it reads what the first of them reads, and answers for all that they add."""
    parent, block = source.parent, block_of(label)
    behind = num_layers(block)
    own = [
        {name: tensor.float() for name, tensor in parent.layer_state(layer).items()}
        for layer in range(index, index + behind)
    ]
    state = run_state(own)
    entries: dict[str, Any] = {}
    start: dict[str, Tensor] = {}
    for variant in map(parse_variant, block):
        entries[variant.slot] = variant.entry(parent.shape, index)
        started = variant.start(parent.shape, index, state, sums)
        start |= {name: tensor.clone() for name, tensor in started.items()}
    source.use(entries["attention"])
    layer = build_layer(parent.config, index, entries["attention"], entries["ffn"], start, torch.float32)
    module = layer.to(source.device).requires_grad_(True)
    return Branch(label, "ffn", module, spans=(Span(module, 0, behind),))


def _gone_on(source: WorkerSource, index: int, label: str, before: Mapping[str, Any]) -> Branch:
    """The variant where the stretch before left it."""
    held = source.store_state(before["weights"][label])
    start = {name: tensor.to(torch.float32, copy=True) for name, tensor in held.items()}
    return _branch(source, index, parse_variant(label), start)


def _branch(source: WorkerSource, index: int, variant: Variant, start: Mapping[str, Tensor]) -> Branch:
    entry = variant.entry(source.parent.shape, index)
    if variant.slot == "attention":
        source.use(entry)
    attention, ffn = (entry, None) if variant.slot == "attention" else (None, entry)
    module = build_layer(source.parent.config, index, attention, ffn, start, torch.float32).to(source.device)
    return Branch(variant.label, variant.slot, module.requires_grad_(True), alone=variant.beside is not None)


class _Told:
    """What the training of a layer tells of itself, group by group.

    A range test mostly has two trials, and the training goes on from one of them: one trial is done beside its steps.
    """

    def __init__(self, progress: Progress, groups: int, settings: LocalSettings, begun: int) -> None:
        self.progress, self.groups, self.steps, self.begun = progress, groups, settings.steps, begun
        self.tried = plan_local_trials(settings).steps
        self.groups_done = 0

    def trial(self, done: int, tried: int) -> None:
        self.progress(self._share(min(done, self.tried)))

    def step(self, step: int, steps: int, loss: float) -> None:
        told = {"step": self.begun + self.groups_done * steps + step, "loss": loss}
        self.progress(self._share(self.tried + step), told)

    def _share(self, done: int) -> float:
        return (self.groups_done + done / (self.tried + self.steps)) / self.groups


def _begun(arguments: dict[str, Any]) -> int:
    """Steps of the stretches before this one."""
    return int(arguments["before"]["steps"]) if arguments.get("before") else 0


def _finite(loss: float) -> float | None:
    """JSON has no word for what is not finite."""
    return loss if math.isfinite(loss) else None


class _Batches:
    """Batches of the layer's input, in the training order, read shard by shard from scratch."""

    def __init__(self, arguments: dict[str, Any], device: torch.device, context: Any) -> None:
        self.layer = arguments["layer"]
        self.scratch = BoundaryScratch(Path(arguments["scratch"]), len(arguments["ranges"]))
        self.outcomes = arguments["outcomes"]
        self.ranges = [tuple(pair) for pair in arguments["ranges"]]
        self.batch = arguments["batch_size"]
        num_sequences, length = arguments["shape"]
        settings = LocalSettings(**arguments["settings"])
        begun = _begun(arguments)
        tokens, held_out = (begun + settings.steps) * self.batch * length, settings.held_out * self.batch
        self.order = training_order(num_sequences, tokens, length, arguments["seed"], held_out)[begun * self.batch :]
        self.device, self.context = device, context
        self.shards: dict[int, list[Tensor]] = {}

    def __iter__(self) -> Iterator[LayerBatch]:
        for start in range(0, len(self.order), self.batch):
            rows = [self._sequence(int(row)) for row in self.order[start : start + self.batch]]
            hidden, *outcome = (torch.stack(states).to(self.device) for states in zip(*rows, strict=True))
            context = self.context(hidden.shape[0], hidden.shape[1])
            yield LayerBatch(hidden, context, (outcome[0], outcome[1]) if self.outcomes else None)

    def _sequence(self, row: int) -> list[Tensor]:
        shard = bisect_right(self.ranges, row, key=lambda pair: pair[0]) - 1
        if shard not in self.shards:
            self.shards[shard] = self._states(shard)
        return [state[row - self.ranges[shard][0]] for state in self.shards[shard]]

    def _states(self, shard: int) -> list[Tensor]:
        """The layer's input and, where they are kept, its middle and its output."""
        states = [self.scratch.read(self.layer, shard)]
        if self.outcomes:
            states += [self.scratch.read_middle(self.layer, shard), self.scratch.read(self.layer + 1, shard)]
        return states
