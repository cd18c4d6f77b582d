"""Global distillation of whole models, fanned out: one piece a model, its weights one blob in the parent's type.

With `recover.workers` above 1 the piece only waits: the model is trained by as many ranks of Ray Train.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from heapq import heapreplace
from typing import Any

from inlay.cluster.pieces import Piece, Record, Resources
from inlay.cluster.records import kept_records
from inlay.distill.settings import MICRO_TOKENS, GlobalSettings
from inlay.nas.errors import InlayError
from inlay.nas.job import Job
from inlay.nas.loop.recovered_together import trained_together
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import held_out_batches, tail_batch
from inlay.nas.pieces.assembled import TrainedModel, store_assembled
from inlay.nas.pieces.rank_training import recover_with_ranks
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.training import recover_model
from inlay.nas.pieces.weights import Library, used_weights
from inlay.nas.tables.architecture import Blocks, identify

RECOVER = Stage("recover", 6, recover_model)
ASSEMBLED = Stage("assembled", 1, store_assembled)
CHECKPOINT_SECONDS = 15.0
"""Between two states of a training on several ranks, at least."""


def recover_models(
    search: Search, texts: Texts, library: Library, architectures: Mapping[str, Blocks]
) -> dict[str, Record]:
    """Trains each architecture for the whole of `recover.tokens`; records as of `train_models`.

    Raises:
        InlayError: one has no finite KL, neither as it came nor after any training.
    """
    found = train_models(
        search, texts, library, architectures, search.job.recover.tokens, "training " + ", ".join(architectures)
    )
    for name, record in found.items():
        if record.values["status"] == "failed":
            raise InlayError(
                f"recover: the training of {name} diverged ({record.values['reason']}); lower recover.learning_rate "
                f"(now {search.job.recover.learning_rate:g}) and run again: all else is kept"
            )
    return found


def assembled_models(search: Search, library: Library, architectures: Mapping[str, Blocks]) -> dict[str, TrainedModel]:
    """The weights of architectures as assembled from parent and library, by the names given: one blob for each."""
    distinct = {identify(architecture): architecture for architecture in architectures.values()}
    pieces = [_assembled_piece(search, library, name, architecture) for name, architecture in distinct.items()]
    records = search.run(pieces, "weights as assembled", "models")
    blobs = {name: record.blobs["model"] for name, record in zip(distinct, records, strict=True)}
    return {name: TrainedModel(blocks, blobs[identify(blocks)]) for name, blocks in architectures.items()}


def _assembled_piece(search: Search, library: Library, name: str, architecture: Blocks) -> Piece:
    depends = {
        "architecture": [list(block) for block in architecture],
        "library": used_weights(library, [architecture]),
    }
    return search.piece(ASSEMBLED, name, {**depends, "store": search.workspace.url}, depends)


def train_models(
    search: Search,
    texts: Texts,
    library: Library,
    architectures: Mapping[str, Blocks],
    tokens: int,
    what: str,
    later: Sequence[Blocks] = (),
) -> dict[str, Record]:
    """Trains each architecture once for so many tokens, equal ones together; records by the names given.

    `what` is what people are told of it. `later` are architectures that `recover_models` is going to train beside the
    child: as many of them are trained now as keep workers from idling then; that changes nothing but the time.

    A record's `values["status"]` is `trained`, with the weights in its blobs, or `failed`, with a reason. The
    other values of one that was trained: `improved` (whether any state was better on the held-out text than the
    start), `best_step` (of the state that is kept, 0 for the start), `start_kl_nats`, `best_kl_nats`, `held_out` (a
    point each time it was judged), `learning_rate` (the peak that it was trained at), `trials` (what each rate of the
    range test led to), `reason` (why it stopped before its last step, else empty), `tokens` and `curve`.

    Raises:
        UserError: this machine has fewer CPUs than one model's ranks.
    """
    distinct = {identify(architecture): architecture for architecture in architectures.values()}
    pieces = [_piece(search, texts, library, architecture, tokens) for architecture in distinct.values()]
    ahead = _ahead(search, texts, library, pieces, tokens, list(dict.fromkeys(later)))
    records = dict(zip(distinct, _run(search, [*ahead, *pieces], what)[len(ahead) :], strict=True))
    for piece in [*ahead, *pieces]:
        shutil.rmtree(piece.arguments["checkpoint"], ignore_errors=True)
    return {name: records[identify(architecture)] for name, architecture in architectures.items()}


def global_settings(job: Job, tokens: int) -> GlobalSettings:
    """The trainer's settings from the job, for so many tokens."""
    chosen, length = job.recover, job.data.distill.sequence_length
    longest = chosen.tail.sequence_length if chosen.tail.tokens else length
    return GlobalSettings(
        steps=max(1, tokens // (job.recover_batch * length)),
        learning_rate=chosen.learning_rate,
        rate=chosen.rate,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        micro_batch=max(1, min(job.recover_batch, MICRO_TOKENS // longest)),
    )


def held_out_for(job: Job, texts: Texts, tokens: int) -> dict[str, Any]:
    """What judges a training on so many tokens, as its piece has it."""
    batch = job.recover_batch if job.recover.tokens else 1
    return {
        "ids": texts.held_out.digest,
        "batches": held_out_batches(job, tokens),
        "batch_size": batch if texts.tail is None else tail_batch(job),
    }


def tail_for(job: Job, texts: Texts, tokens: int) -> dict[str, Any] | None:
    """What a training on so many tokens ends with: as large a share of its steps as of the whole one's."""
    if texts.tail is None:
        return None
    share = job.recover.tail.tokens / job.recover.tokens
    steps = round(global_settings(job, tokens).steps * share)
    return {"ids": texts.tail.digest, "batch_size": tail_batch(job), "steps": steps}


def most_ahead(places: int, trainings: int, share: float, later: int) -> int:
    """How many of `later` whole trainings are done beside so many short ones, so that all, and one more, end soonest.

    Args:
        places: trainings that run at once.
        trainings: the short ones that are due.
        share: of a whole training, how long each of these takes.
        later: whole trainings that come afterwards, together with one more that cannot begin before.
    """

    def seconds(ahead: int) -> float:
        busy = [0.0] * places
        for length in [1.0] * ahead + [share] * trainings:
            heapreplace(busy, busy[0] + length)
        return max(busy) + math.ceil((later + 1 - ahead) / places)

    return min(range(later + 1), key=seconds)


def _ahead(
    search: Search, texts: Texts, library: Library, pieces: Sequence[Piece], tokens: int, later: list[Blocks]
) -> list[Piece]:
    """The whole trainings that are done beside these pieces; none where ranks share a training, or nothing is due."""
    job, due = search.job, len(pieces) - len(kept_records(search.workspace.store, pieces))
    if not (later and due and job.recover.workers == 1):
        return []
    whole = [_piece(search, texts, library, architecture, job.recover.tokens) for architecture in later]
    kept = kept_records(search.workspace.store, whole)
    missing = [piece for piece in whole if piece.key not in kept]
    places = search.places
    return missing[: most_ahead(places, due, tokens / job.recover.tokens, len(missing))]


def _run(search: Search, pieces: list[Piece], what: str) -> list[Record]:
    """All pieces; as many at a time as their ranks have room for."""
    ranks = search.job.recover.workers
    if ranks == 1:
        return search.run(trained_together(search, pieces, what), what, "models")
    if len(kept_records(search.workspace.store, pieces)) == len(pieces):
        return search.run(pieces, what, "models")  # to ask for room starts Ray, which what is kept does not need
    at_once = max(1, search.places // ranks)
    groups = [pieces[first : first + at_once] for first in range(0, len(pieces), at_once)]
    return [record for group in groups for record in search.run(group, what, "models")]


def _piece(search: Search, texts: Texts, library: Library, architecture: Blocks, tokens: int) -> Piece:
    job = search.job
    depends = {
        "ids": texts.recover.digest,
        "held_out": held_out_for(job, texts, tokens),
        "tail": tail_for(job, texts, tokens),
        "architecture": [list(block) for block in architecture],
        "library": used_weights(library, [architecture]),
        "settings": asdict(global_settings(job, tokens)),
        "batch_size": job.recover_batch,
        "train": job.recover.train,
        "seed": job.seed,
        **search.rounding([architecture]),
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
        may_grow=search.may_grow,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    ranks = (job.recover.workers, piece.resources)
    return replace(piece, function=recover_with_ranks, resources=Resources(cpus=0), ranks=ranks)
