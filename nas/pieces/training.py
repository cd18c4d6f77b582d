"""Training of whole models in one process, and what all trainings of whole models share.

What is kept of a model is the best that it had on the held-out text, what it came as among it. A killed training goes
on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput, Progress
from inlay.distill.checkpoint import Checkpoint
from inlay.distill.globally import GlobalResult, Training, distill_globally, training
from inlay.distill.judge import ParentHidden
from inlay.distill.objective import Losses
from inlay.distill.parallel import Ranks
from inlay.distill.rates import plan_trials
from inlay.distill.recompute import recompute
from inlay.distill.settings import GlobalSettings
from inlay.distill.text import training_order
from inlay.distill.together import distill_together
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import build_whole, own_state, set_trained
from inlay.nas.pieces.boundaries import reference_source, worker_source
from inlay.nas.pieces.model_files import store_tensors
from inlay.nas.pieces.rounding import Grids, begin_rounded, trained_rows
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, blocks_of

CURVE_POINTS = 200
Report = Callable[..., None]
"""As `Progress` is called."""


def recover_model(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Trains one assembled model against the parent."""
    ((values, stored),) = _recover([arguments], context)
    return PieceOutput(values=values, stored=stored)


def recover_together(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Trains several beside each other against the parent, which runs once for all; each is what it is alone.

    `values` and blobs are those of `recover_model`, by the keys of the models' own pieces.
    """
    members: dict[str, dict[str, Any]] = arguments["members"]
    found = dict(zip(members, _recover([*members.values()], context), strict=True))
    return PieceOutput(
        values={key: values for key, (values, _) in found.items()},
        stored={f"{key} {blob}": digest for key, (_, stored) in found.items() for blob, digest in stored.items()},
    )


def take_recovered(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """What became of one of those that were trained together, as `recover_model` has it."""
    return PieceOutput(values=arguments["values"], stored=arguments["stored"])


def _recover(members: Sequence[dict[str, Any]], context: PieceContext) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Values and blobs of models that one process trains."""
    source, _ = source_of(members[0], context.scratch)
    teacher = reference_source(members[0], source)
    parent = build_whole(teacher, (PARENT_BLOCK,) * source.num_layers, source.dtype).requires_grad_(False)
    shares = _Shares(context.progress, len(members))
    pupils = [_Pupil.of(own, context, shares.of(number)) for number, own in enumerate(members)]
    if len(pupils) == 1:
        results = [distill_globally(parent, **pupils[0].given)]
    else:
        settings = pupils[0].settings
        parts = -(-members[0]["batch_size"] // (settings.micro_batch or members[0]["batch_size"]))
        results = distill_together(parent, [pupil.begin for pupil in pupils], parts)
    return [pupil.outcome(result) for pupil, result in zip(pupils, results, strict=True)]


@dataclass
class _Pupil:
    """A model that is trained in this process."""

    source: WorkerSource
    child: InlayForCausalLM
    grids: Grids
    settings: GlobalSettings
    given: dict[str, Any]
    """What `distill_globally` takes beside the parent."""

    @classmethod
    def of(cls, arguments: dict[str, Any], context: PieceContext, progress: Report) -> _Pupil:
        """Assembled, and ready to be trained."""
        source, architecture = source_of(arguments, context.scratch)
        child = build_whole(source, architecture, torch.float32)
        set_trained(child, source.parent.shape, architecture, arguments["train"], arguments["seed"])
        grids = begin_rounded(source, architecture, child)
        spare_memory(child, context.memory_retries)
        settings = settings_of(arguments, context.memory_retries)
        told = Told(progress, arguments, settings)
        given = {
            "child": child,
            "batches": batches_of(source, arguments, settings.steps),
            "held_out": held_out_of(source, arguments),
            "settings": settings,
            "on_step": told.step,
            "on_trial": told.trial,
            "checkpoint": Checkpoint(Path(arguments["checkpoint"])),
            "rounding": grids,
        }
        return cls(source, child, grids, settings, given)

    def begin(self, parent: Any, seen: ParentHidden) -> Training:
        """Its training, beside others."""
        return training(parent, **self.given, seen=seen)

    def outcome(self, result: GlobalResult) -> tuple[dict[str, Any], dict[str, str]]:
        """Values and blobs of its piece's record."""
        stored = store_trained(self.source, self.child, self.grids) if result.status == "trained" else {}
        return values_of(result, self.settings.steps), stored


def store_trained(
    source: WorkerSource, child: InlayForCausalLM, grids: Grids, ranks: Ranks | None = None
) -> dict[str, str]:
    """Puts a trained model into the store, in the parent's type; digests as `TrainedModel.of` reads them.

    All ranks call it; none ever holds the whole of a tensor that is sharded.
    """
    blobs = trained_rows(own_state(child), grids, getattr(torch, source.parent.shape.dtype))
    return {blob: store_tensors(source.store, rows, source.device, ranks) for blob, rows in blobs.items()}


def batches_of(source: WorkerSource, arguments: dict[str, Any], steps: int) -> Iterator[Tensor]:
    """Batches [B, S] of ids in the training order, those of the tail behind the others."""
    tail = arguments["tail"] or {**arguments, "steps": 0}
    for text, count in ((arguments, steps - tail["steps"]), (tail, tail["steps"])):
        ids, batch = load_ids(source.store, text["ids"]), text["batch_size"]
        length = ids.shape[1]
        order = training_order(len(ids), count * batch * length, length, arguments["seed"])
        for start in range(0, count * batch, batch):
            yield _on_device(ids[order[start : start + batch]], source)


def held_out_of(source: WorkerSource, arguments: dict[str, Any]) -> list[Tensor]:
    """The batches [B, S] that a model is judged on while it trains."""
    held_out = arguments["held_out"]
    batch = held_out["batch_size"]
    ids = load_ids(source.store, held_out["ids"])[: held_out["batches"] * batch]
    return [_on_device(ids[start : start + batch], source) for start in range(0, len(ids), batch)]


def _on_device(ids_BS: NDArray[np.int32], source: WorkerSource) -> Tensor:
    return torch.from_numpy(ids_BS.astype("int64")).to(source.device)


def source_of(arguments: dict[str, Any], scratch: Path | None = None) -> tuple[WorkerSource, Blocks]:
    """What a training reads weights from, and the architecture that it trains."""
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    return worker_source(arguments, library, scratch), blocks_of(arguments["architecture"])


def settings_of(arguments: dict[str, Any], memory_retries: int) -> GlobalSettings:
    """The trainer's settings; after every want of memory but the first half as many sequences at once, and the same
    batch."""
    chosen = arguments["settings"]
    return GlobalSettings(**{**chosen, "micro_batch": max(1, chosen["micro_batch"] >> max(0, memory_retries - 1))})


def spare_memory(child: InlayForCausalLM, memory_retries: int) -> None:
    """After a first want of memory layers are computed twice, which changes no bit."""
    if memory_retries:
        recompute(child.model.layers)


class _Shares:
    """How far several trainings are that one piece does; the losses of one that is alone are told, too."""

    def __init__(self, progress: Progress, count: int) -> None:
        self.progress, self.done = progress, [0.0] * count

    def of(self, number: int) -> Report:
        """What one of them reports by."""
        if len(self.done) == 1:
            return self.progress

        def report(fraction: float, numbers: Mapping[str, float] | None = None) -> None:
            self.done[number] = fraction
            self.progress(sum(self.done) / len(self.done))

        return report


class Told:
    """What a training tells of itself: how far it is, and each step's losses.

    Its range test mostly has two trials, and the training goes on from one of them: one trial is done beside its steps.
    """

    def __init__(self, progress: Report, arguments: dict[str, Any], settings: GlobalSettings) -> None:
        self.progress = progress
        self.tokens = arguments["batch_size"] * arguments["sequence_length"]
        self.tried = plan_trials(settings).steps
        self.all = self.tried + settings.steps
        self.share = 0.0

    def trial(self, done: int, tried: int) -> None:
        self.share = min(done, 2 * self.tried) / self.all
        self.progress(self.share)

    def step(self, step: int, steps: int, losses: Losses) -> None:
        self.share = max(self.share, (self.tried + step) / self.all)
        self.progress(self.share, {"step": step, "tokens": step * self.tokens, **losses})


def values_of(result: GlobalResult, steps: int) -> dict[str, Any]:
    """Values of the record of a training of so many steps."""
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
