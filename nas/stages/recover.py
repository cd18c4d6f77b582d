"""recover: global distillation of the child and of both baselines, the same text, seed and settings for each.

One piece an architecture; its weights are one blob in the parent's dtype. A killed piece goes on from its checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput, Record
from inlay.distill.checkpoint import Checkpoint
from inlay.distill.globally import GlobalSettings, distill_globally
from inlay.distill.text import training_order
from inlay.nas.errors import InlayError
from inlay.nas.stages.boundaries import worker_source
from inlay.nas.stages.candidates import Blocks, identify, used_weights
from inlay.nas.stages.search import Search, Stage
from inlay.nas.stages.source import Library
from inlay.nas.stages.text import Ids, load_ids
from inlay.nas.stages.whole import build_whole, stored_state
from inlay.nas.tables import PARENT_BLOCK

MICRO_TOKENS = 2048
"""Tokens of a micro-batch; gradients add up to the effective batch."""
CURVE_POINTS = 200


def recover(search: Search, ids: Ids, library: Library, architectures: dict[str, Blocks]) -> dict[str, Record]:
    """Trains each architecture once, equal ones together; records by the names given.

    Raises:
        InlayError: the training of one diverged twice.
    """
    distinct = {identify(architecture): architecture for architecture in architectures.values()}
    pieces = [_piece(search, ids, library, architecture) for architecture in distinct.values()]
    records = dict(zip(distinct, search.run(pieces), strict=True))
    found = {name: records[identify(architecture)] for name, architecture in architectures.items()}
    for name, record in found.items():
        if record.values["status"] == "failed":
            raise InlayError(
                f"recover: the training of {name} diverged ({record.values['reason']}); lower recover.learning_rate "
                f"(now {search.job.recover.learning_rate:g}) and run again: all else is kept"
            )
    return found


def recover_model(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Trains one assembled model against the parent."""
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    source = worker_source(arguments, library)
    architecture = [tuple(block) for block in arguments["architecture"]]
    parent = build_whole(source, [PARENT_BLOCK] * source.num_layers, source.dtype).requires_grad_(False)
    child = build_whole(source, architecture, torch.float32)
    settings = GlobalSettings(**arguments["settings"])
    folder = Path(arguments["checkpoint"])
    result = distill_globally(
        parent,
        child,
        _Batches(source.store, arguments, settings.steps, source.device),
        settings,
        on_step=lambda step, steps, losses: context.progress(step / steps),
        checkpoint=Checkpoint(folder),
    )
    every = max(1, len(result.curve) // CURVE_POINTS)
    values = {"status": result.status, "reason": result.reason, "tokens": result.tokens, "curve": result.curve[::every]}
    state = stored_state(child, getattr(torch, source.parent.shape.dtype))
    shutil.rmtree(folder, ignore_errors=True)
    return PieceOutput(values=values, blobs={"model": state} if result.status == "trained" else {})


RECOVER = Stage("recover", 1, recover_model)


def global_settings(search: Search, ids: Ids) -> GlobalSettings:
    """The trainer's settings from the job."""
    chosen, length = search.job.recover, ids.shape[1]
    return GlobalSettings(
        steps=max(1, chosen.tokens // (chosen.batch_size * length)),
        learning_rate=chosen.learning_rate,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        micro_batch=max(1, min(chosen.batch_size, MICRO_TOKENS // length)),
    )


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


def _piece(search: Search, ids: Ids, library: Library, architecture: Blocks) -> Any:
    job = search.job
    depends = {
        "ids": ids.digest,
        "architecture": [list(block) for block in architecture],
        "library": used_weights(library, [architecture]),
        "settings": asdict(global_settings(search, ids)),
        "batch_size": job.recover.batch_size,
        "seed": job.seed,
    }
    name = identify(architecture)
    piece = search.piece(RECOVER, name, {**depends, "store": search.workspace.url}, depends)
    piece.arguments["checkpoint"] = str(search.scratch / "recover" / piece.key)
    return piece
