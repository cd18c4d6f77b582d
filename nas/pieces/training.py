"""Training of whole models in workers: one process a model, or as many ranks of Ray Train, each with its rows.

A killed training goes on from its checkpoint. The same text in the same order gives the same loss, so neither the ranks
nor the sharding are part of a piece's key: what one number of ranks began or finished, another takes as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput, Progress
from inlay.cluster.train import Rank, TrainSettings, train
from inlay.distill.checkpoint import Checkpoint, TrainingState, read_state, write_state
from inlay.distill.globally import GlobalResult, GlobalSettings, OnStep, distill_globally
from inlay.distill.parallel import Ranks
from inlay.distill.text import training_order
from inlay.nas.pieces.assembled import build_sharded, build_whole, stored_state
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.tables.architecture import PARENT_BLOCK, Block

CURVE_POINTS = 200


def recover_model(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Trains one assembled model against the parent."""
    source, architecture = _source(arguments)
    parent = build_whole(source, [PARENT_BLOCK] * source.num_layers, source.dtype).requires_grad_(False)
    child = build_whole(source, architecture, torch.float32)
    settings = _settings(arguments, context.memory_retries)
    result = distill_globally(
        parent,
        child,
        _Batches(source.store, arguments, settings.steps, source.device),
        settings,
        on_step=_reports_to(context.progress, arguments),
        checkpoint=Checkpoint(Path(arguments["checkpoint"])),
    )
    state = stored_state(child, getattr(torch, source.parent.shape.dtype))
    return PieceOutput(values=_values(result), blobs={"model": state} if result.status == "trained" else {})


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
    weights = {name.removeprefix("weight."): tensors[name].to(dtype) for name in tensors if name.startswith("weight.")}
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
    result = distill_globally(
        parent,
        child,
        _Batches(source.store, arguments, settings.steps, source.device),
        settings,
        on_step=_reports_to(rank.progress, arguments) if rank.index == 0 else None,
        checkpoint=_Committed(rank.folder, every_seconds=arguments["checkpoint_seconds"], rank=rank, ranks=ranks),
        ranks=ranks,
    )
    return _values(result)


def curve_steps(steps: int) -> range:
    """The optimizer steps, 1-based, that a record's curve has of a training of `steps`."""
    return range(1, steps + 1, max(1, steps // CURVE_POINTS))


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


class _Batches:
    """Batches [B, S] of ids in the training order; the same at every call."""

    def __init__(self, store: Any, arguments: dict[str, Any], steps: int, device: torch.device) -> None:
        self.ids = load_ids(store, arguments["ids"])
        self.batch = arguments["batch_size"]
        length = self.ids.shape[1]
        self.order = training_order(len(self.ids), steps * self.batch * length, length, arguments["seed"])
        self.steps, self.device = steps, device

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.steps):
            rows = self.order[step * self.batch : (step + 1) * self.batch]
            yield torch.from_numpy(self.ids[rows].astype("int64")).to(self.device)


def _source(arguments: dict[str, Any]) -> tuple[WorkerSource, list[Block]]:
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    return worker_source(arguments, library), [tuple(block) for block in arguments["architecture"]]


def _settings(arguments: dict[str, Any], memory_retries: int) -> GlobalSettings:
    """The trainer's settings; after every want of memory half as many sequences at once, and the same batch."""
    chosen = arguments["settings"]
    return GlobalSettings(**{**chosen, "micro_batch": max(1, chosen["micro_batch"] >> memory_retries)})


def _reports_to(progress: Progress, arguments: dict[str, Any]) -> OnStep:
    """Tells of every step's losses, with the step and the tokens so far."""
    tokens = arguments["batch_size"] * arguments["sequence_length"]

    def on_step(step: int, steps: int, losses: dict[str, float]) -> None:
        progress(step / steps, {"step": step, "tokens": step * tokens, **losses})

    return on_step


def _values(result: GlobalResult) -> dict[str, Any]:
    curve = [result.curve[step - 1] for step in curve_steps(len(result.curve))]
    return {"status": result.status, "reason": result.reason, "tokens": result.tokens, "curve": curve}
