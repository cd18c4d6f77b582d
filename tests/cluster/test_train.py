"""Ranks of Ray Train on a real cluster: they add up, commit together, and go on after one of them, or the piece that
waits for them, is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster import (
    Cluster,
    Piece,
    PieceContext,
    PieceError,
    PieceEvent,
    PieceOutput,
    Resources,
    Store,
    run_pieces,
)
from inlay.cluster.ray_private import list_of_commits
from inlay.cluster.train import Rank, TrainError, TrainSettings, drop_if_damaged, train

STEPS = 8
HELD_BYTES = 2**30
"""What the second rank holds for a moment: more than all else that it, or the piece that waits for it, does."""


def add_up(arguments: dict[str, Any], rank: Rank) -> dict[str, Any]:
    """Adds a number of every rank at every step and commits the sum at every second one."""
    import torch
    import torch.distributed as dist

    with Path(arguments["log"]).open("a") as log:
        log.write(f"{rank.index}\n")
    if rank.index == 1:
        torch.ones(HELD_BYTES, dtype=torch.uint8)
    last = rank.last()
    done, total = json.loads((last / "sum.json").read_text()) if last else (0, 0.0)
    started_at = done
    while done < STEPS:
        mine = torch.tensor(float((rank.index + 1) * (done + 1)))
        dist.all_reduce(mine)
        done, total = done + 1, total + float(mine)
        _stumble(arguments, rank, done)
        if done % 2 == 0:
            content = json.dumps([done, total])

            folder = rank.folder / f"step_{done}"
            if rank.index == 0:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "sum.json").write_text(content)
            rank.commit(folder.name)
        if rank.index == 0:
            rank.progress(done / STEPS, {"step": done, "total": total})
    return {"total": total, "ranks": rank.count, "device": rank.device, "started_at": started_at}


def _stumble(arguments: dict[str, Any], rank: Rank, done: int) -> None:
    """Once each, at a given step: rank 1 is killed, the waiting piece is killed, rank 1 raises."""
    for name, step in arguments["stumbles"].items():
        mark = Path(arguments["log"] + f".{name}")
        if done == step and rank.index == 1 and not mark.exists():
            mark.touch()
            if name == "raise":
                raise ValueError("a number that is bad\nand more about it")
            os.kill(os.getpid() if name == "rank" else int(Path(arguments["waiter"]).read_text()), signal.SIGKILL)


def wait_for_ranks(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    Path(arguments["waiter"]).write_text(str(os.getpid()))
    settings = TrainSettings(2, Path(arguments["folder"]), retries=arguments["retries"])
    trained = train(add_up, arguments, settings, context.progress)
    assert trained.folder is not None
    left = sorted(path.name for path in Path(arguments["folder"]).glob("step_*"))
    return PieceOutput({**trained.value, "folder": trained.folder.name, "left": left}, peak_bytes=trained.peak_bytes)


def run(
    store: Store,
    cluster: Cluster,
    folder: Path,
    stumbles: dict[str, int],
    retries: int = 1,
    deadline_seconds: float = 200,
) -> Any:
    """The values of a piece with two ranks on two CPUs, the events, and how often a rank was started."""
    folder.mkdir()
    arguments = {
        "log": str(folder / "log"), "waiter": str(folder / "waiter"), "folder": str(folder / "training"),
        "stumbles": stumbles, "retries": retries,
    }  # fmt: skip
    piece = Piece(folder.name, folder.name, "work", 1, wait_for_ranks, arguments, Resources(cpus=0))
    events: list[PieceEvent] = []
    (record,) = run_pieces(store, [piece], cluster, on_event=events.append, deadline_seconds=deadline_seconds)
    assert HELD_BYTES < record.peak_bytes < 2 * HELD_BYTES
    assert list_of_commits(folder / "training").is_file()
    return record.values, events, len((folder / "log").read_text().split())


@pytest.mark.slow
def test_a_killed_rank_and_a_killed_wait_change_nothing(store: Store, cluster: Cluster, tmp_path: Path) -> None:
    values, events, starts = run(store, cluster, tmp_path / "killed", {"rank": 4, "wait": 7})
    assert values["total"] == sum(3 * step for step in range(1, STEPS + 1))
    assert (values["ranks"], values["device"]) == (2, "cpu")
    assert values["started_at"] in (4, 6)  # the commit of step 6 may have been under way at the second kill
    assert (values["folder"], values["left"]) == ("step_8", ["step_8"])
    assert starts == 6  # two ranks, three times
    assert [event.numbers for event in events if event.numbers][-1] == {"step": STEPS, "total": values["total"]}
    assert [event.kind for event in events if event.kind == "retried"] == ["retried"]


@pytest.mark.slow
def test_ranks_that_wait_for_room_are_not_hung(
    store: Store, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("inlay.cluster.fanout._WAITING_SECONDS", 1.0)
    cluster.start()
    others = ray.remote(lambda: time.sleep(50)).options(num_cpus=1).remote()
    values, events, starts = run(store, cluster, tmp_path / "waits", {"rank": 4}, deadline_seconds=30)
    ray.get(others)
    assert (values["total"], starts) == (sum(3 * step for step in range(1, STEPS + 1)), 4)
    kinds = [event.kind for event in events]
    assert "retried" not in kinds
    assert set(kinds[1 : kinds.index("started")]) == {"waiting"}
    said = "it waits for room for 2 ranks of 1 CPU each"
    begun = kinds.index("started")
    assert said in [event.note for event in events[:begun]]
    assert said in [event.note for event in events[begun:]], "the ranks that start again wait again"


@pytest.mark.slow
def test_a_rank_that_raises_is_told(store: Store, cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(PieceError) as caught:
        run(store, cluster, tmp_path / "raises", {"raise": 1}, retries=0)
    assert str(caught.value) == (
        "work, raises: TrainError: rank 1 of 2 raised ValueError: a number that is bad, after 0 new starts; what was "
        "committed is kept"
    )


class Quiet:
    """Progress that nobody hears."""

    def __call__(self, fraction: float, numbers: Mapping[str, float] | None = None, /) -> None: ...

    def waits(self, what: str, /) -> None: ...


def test_ranks_that_can_never_fit_are_told_at_once(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start()
    settings = TrainSettings(3, tmp_path / "training")
    with pytest.raises(TrainError, match="3 ranks of 1 CPU each are wanted, and there is room for 2 of them; ask for"):
        train(add_up, {}, settings, Quiet())


def test_a_list_of_commits_that_was_cut_short_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    (folder / "step_2").mkdir(parents=True)
    snapshot = folder / "checkpoint_manager_snapshot.json"
    snapshot.write_text("{}")
    drop_if_damaged(folder)
    assert snapshot.exists()
    snapshot.write_text('{"checkpoint_results": [')
    drop_if_damaged(folder)
    assert not folder.exists()


def test_settings_out_of_bounds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`ranks` is 0 and `retries` 2"):
        TrainSettings(0, tmp_path)
