"""Training on several ranks through Ray Train: one function in each of them, started together, and together again when
one is lost.

Ray Train forms the process group (gloo on CPUs, NCCL on GPUs), watches the ranks, starts all of them anew after a loss
and keeps count of what was committed. What is trained is the function's business.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.cluster.capacity import room, words
from inlay.cluster.errors import ClusterError
from inlay.cluster.pieces import Progress, Resources
from inlay.cluster.ray_private import list_of_commits, remove_placement_group
from inlay.cluster.worker import is_out_of_memory, peak_bytes, reset_peak

_PLACES = "placement_group"
"""A file in a training's folder: the name of what its ranks hold of the cluster."""


class TrainError(ClusterError):
    """The ranks could not finish, or cannot all be placed; what was committed stays in the folder."""


@dataclass(frozen=True)
class TrainSettings:
    """How many ranks there are, and what each holds."""

    ranks: int
    """At least 1; placed all at once or not at all."""
    folder: Path
    """For what is committed, of this training alone; every node reads and writes it. A start with the same folder goes
    on from the last commit."""
    resources: Resources = field(default_factory=Resources)
    """Of one rank."""
    retries: int = 2
    """How often all ranks are started anew after one of them was lost or raised."""
    may_grow: bool = False
    """Whether to wait for nodes when the ranks do not fit on the cluster as it is."""

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.retries < 0:
            raise ValueError(f"`ranks` is {self.ranks} and `retries` {self.retries}: at least 1 and 0 are needed")


@dataclass(frozen=True)
class Rank:
    """What a rank's function is given beside its arguments; torch.distributed's default group is up."""

    index: int
    """From 0."""
    count: int
    """Ranks in all."""
    device: str
    """`cpu`, or the `cuda:N` that is this rank's."""
    folder: Path
    """Where committed folders lie."""
    progress: Progress
    """Report how far the ranks are, as a piece does; one rank is enough."""

    def last(self) -> Path | None:
        """The folder that was committed last, by these ranks or by those before a restart; None when there is none."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.path)

    def commit(self, name: str) -> None:
        """Makes `folder / name` what `last` gives, and drops the one before; every rank calls it with the same name.

        Each has put its files there by then, if it has any. The folder counts once Ray has taken note, seconds later; a
        name that was never committed may hold files of a try that was cut short.
        """
        import ray.train

        target = self.folder / name
        ray.train.report(
            {},
            checkpoint=ray.train.Checkpoint(str(target)) if self.index == 0 else None,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    value: Any
    """What the first rank's function returned."""
    folder: Path | None
    """The folder committed last."""
    peak_bytes: int
    """Peak resident memory of the largest rank since the last start."""


RankFunction = Callable[[dict[str, Any], Rank], Any]


def train(
    function: RankFunction,
    arguments: Mapping[str, Any],
    settings: TrainSettings,
    progress: Progress,
) -> Trained:
    """Runs a module-level function in every rank and waits for all of them.

    Call it from a piece that books no CPU, since the ranks may take all there are. `progress` must pickle.

    Raises:
        TrainError: a rank raised, or was lost, once more than `retries` allows; or the ranks can never be placed.
        MemoryError: the same, because a rank ran out of memory.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    if not settings.may_grow:
        _check_that_they_fit(settings)
    folder = settings.folder.resolve()
    drop_if_damaged(folder)
    _free_places(folder)
    held = settings.resources
    waited_for = f"room for {settings.ranks} ranks of {words(held)} each"
    run_config: Any = ray.train.RunConfig  # its fields are hidden behind those of the older API
    wish = {"CPU": held.cpus, "GPU": held.gpus, "memory": held.memory_bytes, **held.custom}
    loop: Any = _run_rank  # its result comes back to us, which the trainer's types leave out
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            "function": function, "arguments": dict(arguments), "folder": str(folder), "progress": progress,
            "threads": held.threads,
        },
        torch_config=TorchConfig(backend="nccl" if held.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.ranks,
            use_gpu=held.gpus > 0,
            resources_per_worker={name: amount for name, amount in wish.items() if amount},
        ),
        run_config=run_config(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=settings.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[_tells_of_waits(progress, waited_for)],
        ),
    )  # fmt: skip
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    progress.waits(waited_for)
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _told(error, settings) from error
    value, peak = result.return_value
    return Trained(value, None if result.checkpoint is None else Path(result.checkpoint.path), peak)


def _run_rank(config: dict[str, Any]) -> Any:
    """Gives what the function does, and the peak memory of the largest rank."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    reset_peak()
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    group = ray.util.get_current_placement_group()
    if context.get_world_rank() == 0 and group is not None:
        (Path(config["folder"]) / _PLACES).write_text(group.id.hex())
    rank = Rank(
        index=context.get_world_rank(),
        count=context.get_world_size(),
        device=str(get_device()),
        folder=Path(config["folder"]),
        progress=config["progress"],
    )
    if rank.index == 0:
        rank.progress(0.0)  # the wait for room is over
    value = config["function"](config["arguments"], rank)
    peak = torch.tensor(peak_bytes(), dtype=torch.int64, device=rank.device)
    torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX)
    return value, int(peak)


def _tells_of_waits(progress: Progress, what: str) -> Any:
    """What Ray Train calls in its controller once ranks were lost or raised: all of them wait for room again."""
    import ray.train

    class Tells(ray.train.UserCallback):  # here, since Ray is imported late
        def after_exception(self, run_context: object, worker_exceptions: object) -> None:
            progress.waits(what)

    return Tells()


def _check_that_they_fit(settings: TrainSettings) -> None:
    from inlay.cluster.runtime import live_nodes

    places = room([node["Resources"] for node in live_nodes()], settings.resources)
    if places < settings.ranks:
        raise TrainError(
            f"{settings.ranks} ranks of {words(settings.resources)} each are wanted, and there is room for {places} of "
            "them; ask for fewer, or give the cluster more"
        )


def drop_if_damaged(folder: Path) -> None:
    """Removes a training whose list of commits was cut short by a kill: Ray writes it in place, and would refuse it."""
    try:
        json.loads(list_of_commits(folder).read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        shutil.rmtree(folder)


def _free_places(folder: Path) -> None:
    """Gives back what the ranks of a call held that was killed: Ray keeps it for the job, unless it has a dashboard."""
    with contextlib.suppress(FileNotFoundError):
        remove_placement_group((folder / _PLACES).read_text())


def _told(error: Any, settings: TrainSettings) -> Exception:
    """The reason in one sentence: a lost rank before those that only missed it."""
    import ray

    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    if not failures:
        return TrainError(f"{settings.ranks} ranks could not be started: {_first_line(error)}")
    causes = {index: getattr(each, "health_check_failure", each) for index, each in failures.items()}
    lost = [index for index, cause in causes.items() if isinstance(cause, ray.exceptions.RayError)]
    index = min(lost or causes)
    cause = causes[index]
    kind = type(cause).__name__
    how = f"was lost ({kind})" if lost else f"raised {kind}: {_first_line(cause)}"
    text = f"rank {index} of {settings.ranks} {how}, after {settings.retries} new starts; what was committed is kept"
    return MemoryError(text) if is_out_of_memory(cause) else TrainError(text)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
