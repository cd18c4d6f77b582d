"""One trial of settings, in one worker: a child's variants are trained with them, assembled, and trained as a whole.

Both trainings are those of a search: with the job's own settings and seed the child becomes, to the last bit, what the
search makes of it. What a layer of the parent reads and makes of the whole text stands in memory: three states a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.branches import LayerBatch
from inlay.distill.checkpoint import Checkpoint
from inlay.distill.globally import distill_globally
from inlay.distill.judge import Judge
from inlay.distill.local import train_layer
from inlay.distill.objective import Losses
from inlay.distill.parallel import Ranks
from inlay.distill.settings import JUDGED, GlobalSettings, LocalSettings
from inlay.distill.sweep import SLOTS, add_update
from inlay.distill.text import training_order
from inlay.nas.modeling import build_layer
from inlay.nas.pieces.assembled import build_whole, set_trained
from inlay.nas.pieces.boundaries import embed_rows, micro_batch, reference_source, worker_source
from inlay.nas.pieces.library import branch_of, cutter, following_layers, trained_states, trained_together
from inlay.nas.pieces.rounding import begin_rounded
from inlay.nas.pieces.shards import shard_ranges
from inlay.nas.pieces.training import batches_of, held_out_of, settings_of, spare_memory, store_trained
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.tables.architecture import PARENT_BLOCK, blocks_of
from inlay.nas.variants.statistics import Sums

States = tuple[Tensor, Tensor, Tensor]
"""Of some sequences, [N, S, D] each: before a layer, behind its attention, behind its ffn."""


def try_settings(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Trains the child with the settings of a trial.

    Its values: `status` is `done`, `diverged` (a loss or a KL was not finite, `reason` says which) or `called off`;
    `held_out` has (sixths of the training that were done, KL on the held-out text), the start's first; `kl_nats` the
    least of them. The weights are in its blobs, as `store_trained` has them, where the arguments ask for them.
    """
    told = _Told(context, arguments)
    try:
        stored = _train(arguments, context, told)
    except _EndError as end:
        return PieceOutput(values={"status": end.status, "reason": str(end), "held_out": told.held_out})
    least = min(kl_nats for _, kl_nats in told.held_out)
    values = {"status": "done", "reason": "", "held_out": told.held_out, "kl_nats": least}
    return PieceOutput(values=values, stored=stored)


def _train(arguments: dict[str, Any], context: PieceContext, told: _Told) -> dict[str, str]:
    """The digests of the child's weights, where they are to be kept."""
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    source = worker_source(arguments, library, context.scratch)
    teacher = reference_source(arguments, source)
    if arguments["local"]:
        source = _with_variants(source, arguments, context, told)
    parent = build_whole(teacher, (PARENT_BLOCK,) * source.num_layers, source.dtype).requires_grad_(False)
    architecture = blocks_of(arguments["architecture"])
    child = build_whole(source, architecture, torch.float32)
    grids = begin_rounded(source, architecture, child)
    judged = held_out_of(source, arguments)
    whole = {**arguments, **(arguments["whole"] or {"settings": {"steps": 1, "micro_batch": 1}})}
    settings = settings_of(whole, context.memory_retries)
    spare_memory(child, context.memory_retries)
    if arguments["whole"] is None:
        told.judged([(0, Judge(parent, child, judged, settings, Ranks(), grids).kl_nats())], settings)
    else:
        set_trained(child, source.parent.shape, architecture, arguments["whole"]["train"], arguments["seed"])
        result = distill_globally(
            parent,
            child,
            batches_of(source, whole, settings.steps),
            judged,
            settings,
            on_step=told.step,
            on_trial=told.trial,
            on_judged=lambda held_out: told.judged(held_out, settings),
            checkpoint=Checkpoint(Path(arguments["checkpoint"])),
            rounding=grids,
        )
        if result.reason and result.steps:  # a child of which nothing is trained is what it came as
            raise _DivergedError(result.reason)
    return store_trained(source, child, grids) if arguments["keep"] else {}


@dataclass
class _TrainedSource(WorkerSource):
    """A source whose library stands in memory, by the names that it gives to digests."""

    held: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def store_state(self, digest: str) -> dict[str, Tensor]:
        return dict(self.held[digest])


def _with_variants(
    source: WorkerSource, arguments: dict[str, Any], context: PieceContext, told: _Told
) -> _TrainedSource:
    """The source with the child's variants trained, rounded to what is stored."""
    local = arguments["local"]
    layers = {int(layer): held for layer, held in local["layers"].items()}
    stored = getattr(torch, source.parent.shape.dtype)
    held: dict[str, dict[str, Tensor]] = {}
    for index, shards in _layers(source, local, context, max(layers)):
        if index not in layers:
            continue
        trained = _train_variants(source, arguments, context, told, index, shards)
        for label, state in trained.items():
            held[f"{index} {label}"] = {name: tensor.to(stored).cpu() for name, tensor in state.items()}
    library = Library({index: {label: f"{index} {label}" for label in layers[index]["variants"]} for index in layers})
    return _TrainedSource(
        source.parent, library, source.store, source.dtype, source.device, source.inputs, source.kept, held=held
    )


def _layers(
    source: WorkerSource, local: Mapping[str, Any], context: PieceContext, last: int
) -> Iterator[tuple[int, list[States]]]:
    """The parent's layers up to `last`, each with its states shard by shard, as boundaries are made for a search."""
    num_sequences, length = local["shape"]
    size = micro_batch(length, context.memory_retries)
    hidden = [
        embed_rows(source, local["ids"], rows).cpu().clone() for rows in shard_ranges(num_sequences, length)
    ]  # clones, since autograd takes nothing that was made in inference mode
    for index in range(last + 1):
        modules = {slot: source.subblock(index, slot, f"{slot}:parent") for slot in SLOTS}
        shards: list[States] = []
        for before in hidden:
            states = [before.to(source.device)]
            for slot, module in modules.items():
                with torch.no_grad():
                    state = states[-1]
                    states.append(state if module is None else add_update(module, slot, source, state, size))
            shards.append((states[0].cpu(), states[1].cpu(), states[2].cpu()))
        yield index, shards
        hidden = [after for _, _, after in shards]


def _train_variants(
    source: WorkerSource,
    arguments: dict[str, Any],
    context: PieceContext,
    told: _Told,
    index: int,
    shards: Sequence[States],
) -> dict[str, dict[str, Tensor]]:
    """Trains the child's variants of one layer: their weights by label, in float32."""
    local, parent = arguments["local"], source.parent
    settings = LocalSettings(**local["settings"])
    state = parent.layer_state(index)
    entries = {slot: parent.shape.parent_entry(index, slot) for slot in SLOTS}
    source.use(entries["attention"])
    parent_layer = build_layer(parent.config, index, entries["attention"], entries["ffn"], state, source.dtype)
    mine = local["layers"][str(index)]
    sums = Sums.from_dict(source.store_state(mine["sums"])) if mine["sums"] else Sums()
    choices = trained_together(mine["variants"])
    branches = [branch_of(source, index, choice, state, sums) for choice in choices]
    results = train_layer(
        parent_layer.to(source.device),
        branches,
        _batches(source, arguments, settings, shards),
        settings,
        lambda step, steps, loss: told.local_step(),
        cutter(2**context.memory_retries, source),
        following=following_layers(source, index, choices),
    )
    for result in results:
        if result.status == "failed":
            raise _DivergedError(f"layer {index}, {result.label}: {result.reason}")
    return {label: state for result in results for label, state in trained_states(parent.shape, index, result).items()}


def _batches(
    source: WorkerSource, arguments: dict[str, Any], settings: LocalSettings, shards: Sequence[States]
) -> Iterator[LayerBatch]:
    """A layer's batches in the training order; what the parent made of them only in float32, as in a search."""
    local, batch = arguments["local"], arguments["local"]["batch_size"]
    num_sequences, length = local["shape"]
    tokens, held_out = settings.steps * batch * length, settings.held_out * batch
    order = training_order(num_sequences, tokens, length, arguments["seed"], held_out)
    places = [(number, row) for number, (states, _, _) in enumerate(shards) for row in range(len(states))]
    for start in range(0, len(order), batch):
        rows = [places[int(row)] for row in order[start : start + batch]]
        before, middle, after = (
            torch.stack([shards[shard][part][row] for shard, row in rows]).to(source.device) for part in range(3)
        )
        outcome = (middle, after) if source.dtype == torch.float32 else None
        yield LayerBatch(before, source.context(len(rows), length), outcome)


class _EndError(Exception):
    """A trial that ends before its training does."""

    status = ""


class _DivergedError(_EndError):
    status = "diverged"


class _CalledOffError(_EndError):
    status = "called off"


class _Told:
    """What a trial tells the driver: how far it is and every judgement; and hears from it whether to go on."""

    def __init__(self, context: PieceContext, arguments: dict[str, Any]) -> None:
        self.progress = context.progress
        local, whole = arguments["local"], arguments["whole"]
        self.local_steps = local["settings"]["steps"] * len(local["layers"]) if local else 0
        local_tokens = local["settings"]["steps"] * local["batch_size"] * local["shape"][1] if local else 0
        whole_tokens = whole["settings"]["steps"] * whole["batch_size"] * whole["sequence_length"] if whole else 0
        self.local_share = local_tokens / max(1, local_tokens + whole_tokens)
        self.done = 0
        self.share = 0.0
        self.held_out: list[tuple[int, float]] = []

    def local_step(self) -> None:
        """A step of local distillation was done, in one of the layers."""
        self.done += 1
        self._tell(self.local_share * self.done / self.local_steps)

    def trial(self, done: int, tried: int) -> None:
        """A step of the range test was done."""
        self._tell(self.share)

    def step(self, step: int, steps: int, losses: Losses) -> None:
        """A step of global distillation was done."""
        self._tell(self.local_share + (1 - self.local_share) * step / steps)

    def judged(self, held_out: Sequence[tuple[int, float | None]], settings: GlobalSettings) -> None:
        """The child was judged; `held_out` has all judgements so far."""
        self.held_out = []
        for done, kl_nats in held_out:
            if kl_nats is None or not math.isfinite(kl_nats):
                raise _DivergedError(f"the KL on held-out text was not finite after {done} of {settings.steps} steps")
            self.held_out.append((JUDGED * done // settings.steps, kl_nats))
        self._tell(self.share)

    def _tell(self, share: float) -> None:
        self.share = max(self.share, share)
        # All of them each time: of reports that follow each other closely only some arrive.
        self.progress(min(self.share, 0.999), {str(place): kl_nats for place, kl_nats in self.held_out})
        if self.progress.called_off():
            raise _CalledOffError("called off")
