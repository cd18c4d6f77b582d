"""recover: global distillation of the child and of both baselines, the same text, seed and settings for each.

One piece an architecture; its weights are one blob in the parent's dtype: the best that it had on the held-out text,
those that it came with among them. A killed piece goes on from its checkpoint.
With `recover.workers` above 1 the piece only waits: the model is trained by as many ranks of Ray Train, each with its
rows of every batch. The same text in the same order gives the same loss, so neither the ranks nor the sharding are part
of the piece's key: what one number of ranks began or finished, another takes as it is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, Progress, Record, Resources
from inlay.cluster.train import Rank, TrainSettings, train
from inlay.distill.checkpoint import Checkpoint, TrainingState, read_state, write_state
from inlay.distill.globally import BEST, GlobalResult, distill_globally
from inlay.distill.objective import Losses
from inlay.distill.parallel import Ranks
from inlay.distill.rates import plan_trials
from inlay.distill.settings import GlobalSettings
from inlay.distill.text import training_order
from inlay.nas.errors import InlayError
from inlay.nas.stages.boundaries import worker_source
from inlay.nas.stages.candidates import Blocks, identify, used_weights
from inlay.nas.stages.search import Search, Stage
from inlay.nas.stages.source import Library, WorkerSource
from inlay.nas.stages.text import Texts, held_out_batches, load_ids
from inlay.nas.stages.whole import build_sharded, build_whole, stored_state
from inlay.nas.tables import PARENT_BLOCK, Block

MICRO_TOKENS = 2048
"""Tokens of a micro-batch; gradients add up to the effective batch."""
CURVE_POINTS = 200
CHECKPOINT_SECONDS = 60.0
"""Between two states of a training on several ranks."""


def recover(search: Search, texts: Texts, library: Library, architectures: Mapping[str, Blocks]) -> dict[str, Record]:
    """Trains each architecture once, equal ones together; records by the names given.

    Raises:
        InlayError: one has no finite KL, neither as it came nor after any training.
    """
    found = train_models(search, texts, library, architectures, search.job.recover.tokens)
    for name, record in found.items():
        if record.values["status"] == "failed":
            raise InlayError(
                f"recover: the training of {name} diverged ({record.values['reason']}); lower recover.learning_rate "
                f"(now {search.job.recover.learning_rate:g}) and run again: all else is kept"
            )
    return found


def train_models(
    search: Search, texts: Texts, library: Library, architectures: Mapping[str, Blocks], tokens: int
) -> dict[str, Record]:
    """Trains each architecture once for so many tokens, equal ones together; records by the names given.

    A record's `values["status"]` is `trained`, with the weights in its blob `model`, or `failed`, with a reason. The
    other values of one that was trained: `improved` (whether any state was better on the held-out text than the
    start), `best_step` (of the state that is kept, 0 for the start), `start_kl_nats`, `best_kl_nats`, `held_out` (a
    point each time it was judged), `learning_rate` (the peak that it was trained at), `trials` (what each rate of the
    range test led to), `reason` (why it stopped before its last step, else empty), `tokens` and `curve`.

    Raises:
        UserError: this machine has fewer CPUs than one model's ranks.
    """
    distinct = {identify(architecture): architecture for architecture in architectures.values()}
    pieces = [_piece(search, texts, library, architecture, tokens) for architecture in distinct.values()]
    records = dict(zip(distinct, _run(search, pieces), strict=True))
    for piece in pieces:
        shutil.rmtree(piece.arguments["checkpoint"], ignore_errors=True)
    return {name: records[identify(architecture)] for name, architecture in architectures.items()}


def recover_model(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Trains one assembled model against the parent."""
    source, architecture = _source(arguments)
    parent = build_whole(source, [PARENT_BLOCK] * source.num_layers, source.dtype).requires_grad_(False)
    child = build_whole(source, architecture, torch.float32)
    settings = _settings(arguments, context.memory_retries)
    told = _Told(context.progress, arguments, settings)
    result = distill_globally(
        parent,
        child,
        _batches(source, arguments, settings.steps),
        _held_out(source, arguments),
        settings,
        on_step=told.step,
        on_trial=told.trial,
        checkpoint=Checkpoint(Path(arguments["checkpoint"])),
    )
    state = stored_state(child, getattr(torch, source.parent.shape.dtype))
    return PieceOutput(
        values=_values(result, settings.steps), blobs={"model": state} if result.status == "trained" else {}
    )


def recover_with_ranks(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Has one assembled model trained by ranks of Ray Train, and takes its weights from what they committed."""
    settings = TrainSettings(
        ranks=arguments["ranks"],
        folder=Path(arguments["checkpoint"]),
        resources=arguments["rank_resources"],
        may_grow=arguments["may_grow"],
    )
    told = {**arguments, "memory_retries": context.memory_retries}
    trained = train(recover_in_rank, told, settings, context.progress)
    if trained.value["status"] != "trained" or trained.folder is None:
        return PieceOutput(values=trained.value, peak_bytes=trained.peak_bytes)
    dtype = getattr(torch, _source(arguments)[0].parent.shape.dtype)
    tensors = read_state(_parts(trained.folder)).tensors
    weights = {name.removeprefix(BEST): tensors[name].to(dtype) for name in tensors if name.startswith(BEST)}
    return PieceOutput(values=trained.value, blobs={"model": weights}, peak_bytes=trained.peak_bytes)


def recover_in_rank(arguments: dict[str, Any], rank: Rank) -> dict[str, Any]:
    """One rank's part of the training; the values of the piece's record, the same in every rank."""
    source, architecture = _source({**arguments, "device": rank.device})
    parents = [PARENT_BLOCK] * source.num_layers
    ranks = Ranks(rank.index, rank.count, sharded=arguments["sharding"] == "full")
    if ranks.sharded:
        parent = build_sharded(source, parents, source.dtype, trained=False)
        child = build_sharded(source, architecture, torch.float32, trained=True)
    else:
        parent = build_whole(source, parents, source.dtype).requires_grad_(False)
        child = build_whole(source, architecture, torch.float32)
    settings = _settings(arguments, arguments["memory_retries"])
    told = _Told(rank.progress, arguments, settings) if rank.index == 0 else None
    result = distill_globally(
        parent,
        child,
        _batches(source, arguments, settings.steps),
        _held_out(source, arguments),
        settings,
        on_step=told.step if told else None,
        on_trial=told.trial if told else None,
        checkpoint=_Committed(rank.folder, every_seconds=arguments["checkpoint_seconds"], rank=rank, ranks=ranks),
        ranks=ranks,
    )
    return _values(result, settings.steps)


RECOVER = Stage("recover", 3, recover_model)


def global_settings(search: Search, tokens: int) -> GlobalSettings:
    """The trainer's settings from the job, for so many tokens."""
    chosen, length = search.job.recover, search.job.data.distill.sequence_length
    return GlobalSettings(
        steps=max(1, tokens // (chosen.batch_size * length)),
        learning_rate=chosen.learning_rate,
        rate=chosen.rate,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        micro_batch=max(1, min(chosen.batch_size, MICRO_TOKENS // length)),
    )


@dataclass(kw_only=True)
class _Committed(Checkpoint):
    """The state of a training on several ranks: each writes what it holds of it, and all commit it together."""

    rank: Rank
    ranks: Ranks

    def save(self, state: TrainingState) -> None:
        def write(folder: Path) -> None:
            if state.tensors:
                write_state(folder / f"rank_{self.rank.index:05d}.safetensors", state)

        # Other ranks, or another layout, never write into a folder that these left half done.
        layout = "shards" if self.ranks.sharded else "whole"
        self.rank.commit(f"step_{state.progress['done']:09d}_{layout}_{self.rank.count}", write)
        self._saved_at = time.monotonic()

    def load(self) -> TrainingState | None:
        folder = self.rank.last()
        return None if folder is None else read_state(_parts(folder))


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank_*.safetensors"))


def _batches(source: WorkerSource, arguments: dict[str, Any], steps: int) -> Iterator[Tensor]:
    """Batches [B, S] of ids in the training order."""
    ids, batch = load_ids(source.store, arguments["ids"]), arguments["batch_size"]
    length = ids.shape[1]
    order = training_order(len(ids), steps * batch * length, length, arguments["seed"])
    for start in range(0, steps * batch, batch):
        yield _on_device(ids[order[start : start + batch]], source)


def _held_out(source: WorkerSource, arguments: dict[str, Any]) -> list[Tensor]:
    """The batches [B, S] that a model is judged on while it trains."""
    batch = arguments["batch_size"]
    ids = load_ids(source.store, arguments["held_out"]["ids"])[: arguments["held_out"]["batches"] * batch]
    return [_on_device(ids[start : start + batch], source) for start in range(0, len(ids), batch)]


def _on_device(ids_BS: NDArray[np.int32], source: WorkerSource) -> Tensor:
    return torch.from_numpy(ids_BS.astype("int64")).to(source.device)


def _run(search: Search, pieces: list[Piece]) -> list[Record]:
    """All pieces; as many at a time as their ranks have room for."""
    ranks = search.job.recover.workers
    if ranks == 1:
        return search.run(pieces)
    at_once = max(1, search.cluster.workers // ranks)
    groups = [pieces[first : first + at_once] for first in range(0, len(pieces), at_once)]
    return [record for group in groups for record in search.run(group)]


def _piece(search: Search, texts: Texts, library: Library, architecture: Blocks, tokens: int) -> Piece:
    job = search.job
    depends = {
        "ids": texts.recover.digest,
        "held_out": {"ids": texts.held_out.digest, "batches": held_out_batches(job, tokens)},
        "architecture": [list(block) for block in architecture],
        "library": used_weights(library, [architecture]),
        "settings": asdict(global_settings(search, tokens)),
        "batch_size": job.recover.batch_size,
        "seed": job.seed,
    }
    handles = {"store": search.workspace.url, "sequence_length": texts.recover.shape[1]}
    label = identify(architecture) if tokens == job.recover.tokens else f"probe {identify(architecture)}"
    piece = search.piece(RECOVER, label, {**depends, **handles}, depends)
    piece.arguments["checkpoint"] = str(search.scratch / "recover" / piece.key)
    if job.recover.workers == 1:
        return piece
    piece.arguments.update(
        ranks=job.recover.workers,
        sharding=job.recover.sharding,
        rank_resources=piece.resources,
        may_grow=search.cluster.elastic,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    return replace(piece, function=recover_with_ranks, resources=Resources(cpus=0))


def _source(arguments: dict[str, Any]) -> tuple[WorkerSource, list[Block]]:
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    return worker_source(arguments, library), [tuple(block) for block in arguments["architecture"]]


def _settings(arguments: dict[str, Any], memory_retries: int) -> GlobalSettings:
    """The trainer's settings; after every want of memory half as many sequences at once, and the same batch."""
    chosen = arguments["settings"]
    return GlobalSettings(**{**chosen, "micro_batch": max(1, chosen["micro_batch"] >> memory_retries)})


class _Told:
    """What a training tells of itself: how far it is, its range test in front, and each step's losses."""

    def __init__(self, progress: Progress, arguments: dict[str, Any], settings: GlobalSettings) -> None:
        self.progress = progress
        self.tokens = arguments["batch_size"] * arguments["sequence_length"]
        plan = plan_trials(settings)
        self.tried, self.steps = len(plan.rates) * plan.steps, settings.steps

    def trial(self, done: int, tried: int) -> None:
        self.progress(done / (tried + self.steps))

    def step(self, step: int, steps: int, losses: Losses) -> None:
        share = (self.tried + step) / (self.tried + steps)
        self.progress(share, {"step": step, "tokens": step * self.tokens, **losses})


def _values(result: GlobalResult, steps: int) -> dict[str, Any]:
    shown = range(0, result.steps, max(1, steps // CURVE_POINTS))
    return {
        "status": result.status,
        "reason": result.reason,
        "tokens": result.tokens,
        "curve": [{"step": place + 1, **result.curve[place]} for place in shown if result.curve[place]],
        "learning_rate": result.learning_rate,
        "trials": [asdict(trial) for trial in result.trials],
        "held_out": [{"step": step, "kl_nats": kl_nats} for step, kl_nats in result.held_out],
        "best_step": result.best_step,
        "start_kl_nats": result.start_kl_nats,
        "best_kl_nats": result.best_kl_nats,
        "improved": result.improved,
    }
