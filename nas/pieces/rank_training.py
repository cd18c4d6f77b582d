"""Training of whole models by as many ranks of Ray Train, each with its rows of every batch.

The same text in the same order gives the same loss, so neither the ranks nor the sharding are part of a piece's key:
what one number of ranks began or finished, another takes as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.cluster.train import Rank, TrainSettings, train
from inlay.distill.globally import distill_globally
from inlay.distill.optimize import training_dtype
from inlay.distill.parallel import Ranks
from inlay.distill.rank_checkpoint import RankCheckpoint
from inlay.nas.pieces.assembled import build_sharded, build_whole, set_trained
from inlay.nas.pieces.boundaries import reference_source
from inlay.nas.pieces.rounding import begin_rounded
from inlay.nas.pieces.training import (
    Told,
    batches_of,
    held_out_of,
    settings_of,
    source_of,
    spare_memory,
    store_trained,
    values_of,
)
from inlay.nas.tables.architecture import PARENT_BLOCK


def recover_with_ranks(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Has one assembled model trained by ranks of Ray Train, which put its weights into the store."""
    settings = TrainSettings(
        ranks=arguments["ranks"],
        folder=Path(arguments["checkpoint"]),
        resources=arguments["rank_resources"],
        may_grow=arguments["may_grow"],
    )
    told = {**arguments, "memory_retries": context.memory_retries}
    trained = train(recover_in_rank, told, settings, context.progress)
    values, stored = trained.value
    return PieceOutput(values=values, stored=stored, peak_bytes=trained.peak_bytes)


def recover_in_rank(arguments: dict[str, Any], rank: Rank) -> tuple[dict[str, Any], dict[str, str]]:
    """One rank's part of the training; values and blobs of the piece's record, the same in every rank."""
    arguments = {**arguments, "device": rank.device}
    source, architecture = source_of(arguments)
    teacher = reference_source(arguments, source)
    parents = (PARENT_BLOCK,) * source.num_layers
    ranks = Ranks(
        rank.index, rank.count, sharded=arguments["sharding"] == "full", spares=arguments["memory_retries"] > 0
    )
    if ranks.sharded:
        parent = build_sharded(teacher, parents, source.dtype, "none")
        compute = training_dtype(source.dtype)
        child = build_sharded(
            source,
            architecture,
            torch.float32,
            arguments["train"],
            arguments["seed"],
            None if compute is torch.float32 else compute,
        )
    else:
        parent = build_whole(teacher, parents, source.dtype).requires_grad_(False)
        child = build_whole(source, architecture, torch.float32)
        set_trained(child, source.parent.shape, architecture, arguments["train"], arguments["seed"])
    grids = begin_rounded(source, architecture, child)
    spare_memory(child, arguments["memory_retries"])
    settings = settings_of(arguments, arguments["memory_retries"])
    told = Told(rank.progress, arguments, settings) if rank.index == 0 else None
    result = distill_globally(
        parent,
        child,
        batches_of(source, arguments, settings.steps),
        held_out_of(source, arguments),
        settings,
        on_step=told.step if told else None,
        on_trial=told.trial if told else None,
        checkpoint=RankCheckpoint(
            rank.folder,
            every_seconds=arguments["checkpoint_seconds"],
            ranks=ranks,
            device=torch.device(rank.device),
            commit=rank.commit,
            last=rank.last,
        ),
        ranks=ranks,
        rounding=grids,
    )
    stored = store_trained(source, child, grids, ranks) if result.status == "trained" else {}
    return values_of(result, settings.steps), stored
