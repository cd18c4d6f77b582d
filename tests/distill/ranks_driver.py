"""Run as a program by test_parallel.py, one process a rank: the trainings that are compared there."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from inlay.distill.globally import distill_globally
from inlay.distill.parallel import Ranks, is_sharded, local, shard, shard_ends, world_mesh
from inlay.distill.rank_checkpoint import RankCheckpoint
from inlay.distill.recompute import recompute
from inlay.distill.settings import GlobalSettings
from inlay.distill.tensor_files import Rows, write_files

INDEX, COUNT, PORT, FOLDER = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
STEPS = 6
MOST_BYTES = 8_000
SETTINGS = GlobalSettings(steps=STEPS, learning_rate=3e-3)
ALONE, WHOLE, SHARDED = Ranks(), Ranks(INDEX, COUNT), Ranks(INDEX, COUNT, sharded=True)


def small() -> Any:
    """The models and batches of test_globally.py."""
    spec = importlib.util.spec_from_file_location("small", Path(__file__).with_name("test_globally.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small"] = module
    spec.loader.exec_module(module)
    return module


SMALL = small()


def parts(folder: Path, ranks: Ranks) -> RankCheckpoint:
    """Saved every two steps; the folder that is to be gone on from is named by a file once all are there."""

    def commit(name: str) -> None:
        if ranks.index == 0:
            (folder / "last").write_text(name)
        if ranks.count > 1:
            dist.barrier()

    def last() -> Path | None:
        told = folder / "last"
        return folder / told.read_text() if told.exists() else None

    return RankCheckpoint(
        folder, every_steps=2, every_seconds=None, ranks=ranks, device=torch.device("cpu"), commit=commit, last=last
    )


def train(
    name: str,
    ranks: Ranks,
    *,
    tied: bool = True,
    size: int = 4,
    micro_batch: int | None = None,
    checkpoint: str | None = None,
    kill_after: int | None = None,
    spoil: bool = False,
    learning_rate: float = SETTINGS.learning_rate,
    dtype: torch.dtype = torch.float32,
    again: bool = False,
) -> None:
    """Trains on these ranks and writes, from every one of them, what came of it under `name`."""
    parent, child = SMALL.models(tied)
    parent.to(dtype)
    compute = None if dtype is torch.float32 else dtype
    if spoil:
        with torch.no_grad():
            child.model.layers[3].mlp.down_proj.weight.fill_(float("inf"))
    if again:
        recompute(child.model.layers)
    if ranks.sharded:
        mesh = world_mesh(torch.device("cpu"))
        for model in (parent, child):
            for unit in model.model.layers:
                shard(unit, mesh, compute if model is child else None)
            shard_ends(model, mesh, compute if model is child else None)

    seen: list[int] = []

    def on_step(step: int, steps: int, losses: dict[str, float]) -> None:
        seen.append(step)
        if step == kill_after:
            raise SMALL.Killed

    kept = None if checkpoint is None else parts(FOLDER / checkpoint, ranks)
    try:
        result = distill_globally(
            parent,
            child,
            SMALL.batches(STEPS, size),
            SMALL.held_out(size=size),
            replace(SETTINGS, micro_batch=micro_batch, learning_rate=learning_rate),
            on_step,
            checkpoint=kept,
            ranks=ranks,
        )
    except SMALL.Killed:
        assert kept is not None
        kept.wait()  # a process that is killed writes no more
        dist.barrier()
        return
    rows = {
        n: Rows(tuple(t.shape), t.dtype, partial(local, t.detach()), is_sharded(t)) for n, t in child.named_parameters()
    }
    for number, file in enumerate(write_files(rows, lambda: FOLDER / f"{name}_{uuid4().hex}", ranks, MOST_BYTES)):
        if file.path is not None:
            file.path.rename(FOLDER / f"{name}_{number:02}_by_{ranks.index}.weights")
    weights = {n: (t.full_tensor() if is_sharded(t) else t).detach().clone() for n, t in child.named_parameters()}
    save_file(weights, FOLDER / f"{name}_{ranks.index}.safetensors")
    (FOLDER / f"{name}_{ranks.index}.json").write_text(json.dumps(asdict(result)))
    (FOLDER / f"{name}_{ranks.index}.first").write_text(str(seen[0]))


def main() -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=PORT)
    dist.init_process_group("gloo", rank=INDEX, world_size=COUNT)
    if INDEX == 0:
        train("alone", ALONE, micro_batch=2)
        train("alone_untied", ALONE, tied=False)
        train("alone_uneven", ALONE, size=5)
        for tied in (True, False):
            train(f"alone_narrow_{tied}", ALONE, tied=tied, dtype=torch.bfloat16)
    train("often", replace(SHARDED, spares=True), tied=False, micro_batch=1, again=True)
    for tied in (True, False):
        train(f"narrow_{tied}", SHARDED, tied=tied, dtype=torch.bfloat16, micro_batch=1)
    train("whole", WHOLE)
    train("uneven", WHOLE, size=5)
    train("sharded", SHARDED)
    train("sharded_untied", SHARDED, tied=False, micro_batch=1)
    train("diverged", SHARDED, spoil=True)
    train("harmed", SHARDED, learning_rate=3.0)
    if INDEX == 0:
        start = {name: tensor.detach().clone() for name, tensor in SMALL.models()[1].named_parameters()}
        save_file(start, FOLDER / "start_0.safetensors")
    for name, ranks in (("whole", WHOLE), ("sharded", SHARDED)):
        train(name, ranks, checkpoint=f"{name}_state", kill_after=5)
        train(f"{name}_resumed", ranks, checkpoint=f"{name}_state")
    for name, ranks in (("moved", SHARDED), ("cut", WHOLE)):
        train(name, ranks, checkpoint=f"{name}_state", kill_after=5)
    train("cut", SHARDED, checkpoint="cut_state")
    dist.destroy_process_group()
    if INDEX == 0:
        train("moved", ALONE, checkpoint="moved_state")


if __name__ == "__main__":
    main()
