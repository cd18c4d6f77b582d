"""`kill -9` of the whole process group at random moments, then the same command: the same tables, little repeated."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command

from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]
VOLATILE = ("measured_runtime_ns", "measured_ratio", "measured_ratio_error")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_kills_change_nothing(finished: Path, tmp_path: Path, inlay_command: Run) -> None:
    kill_and_compare(finished, tmp_path, inlay_command, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(1, 5))
def test_twenty_kills_change_nothing(finished: Path, tmp_path: Path, inlay_command: Run, seed: int) -> None:
    kill_and_compare(finished, tmp_path, inlay_command, kills=5, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_change_nothing_where_what_is_trained_is_decided_on_the_way(
    whole_job: Callable[[], dict[str, Any]], tmp_path: Path, inlay_command: Run
) -> None:
    job = whole_job()
    job["distill"] = {"tokens": "32k", "guided": True}
    job["recover"] = {"tokens": "4k", "probes": 0}
    guided, killed = tmp_path / "guided", tmp_path / "killed"
    for folder in (guided, killed):
        folder.mkdir()
    (guided / "job.yaml").write_text(yaml.safe_dump(job))
    done = inlay_command("run", "job.yaml", cwd=guided)
    assert done.returncode == 0, done.stderr
    losses = Workspace(guided / "job.search").read_table("losses")
    assert {row["tokens"] for row in losses} == {8 * 1024, 31 * 1024}
    assert {row["tokens"] == 31 * 1024 for row in losses if not row["reason"]} == {True}
    assert " to the end in " in done.stdout + done.stderr
    kill_and_compare(guided, killed, inlay_command, kills=3, seed=7)


def kill_and_compare(finished: Path, folder: Path, inlay_command: Run, kills: int, seed: int) -> None:
    values = yaml.safe_load((finished / "job.yaml").read_text())
    # Times are an input here: an equal cost table promises equal solutions.
    values["hardware"]["costs"] = str(finished / "job.search" / "tables" / "costs.parquet")
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    seconds = sum(
        stage["seconds"] for stage in json.loads((finished / "job.search" / "run.json").read_text())["stages"]
    )
    moments = random.Random(seed)
    for _ in range(kills):
        before = committed(folder)
        run_and_kill(folder, after=moments.uniform(4, 4 + seconds / kills))
        after = committed(folder)
        assert all(after[name] == stamp for name, stamp in before.items()), "a committed piece was done again"
    last = committed(folder)
    done = inlay_command("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert all(committed(folder)[name] == stamp for name, stamp in last.items())
    ours, theirs = Workspace(folder / "job.search"), Workspace(finished / "job.search")
    for table in ("scores", "losses", "recovery"):
        name = f"tables/{table}.parquet"
        assert ours.store.get(name) == theirs.store.get(name), table
    assert steady(ours.read_table("pool")) == steady(theirs.read_table("pool"))
    assert kl_of(ours) == kl_of(theirs)


def run_and_kill(folder: Path, after: float) -> None:
    """Starts the command in a process group of its own and kills the group."""
    process = Command("run", "job.yaml", cwd=folder, session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=after)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # What the workers still do ends within moments; a resumed run must not race with them for the clock.
    time.sleep(1)


def committed(folder: Path) -> dict[str, int]:
    """Every record with the time it was written: a piece that is done again would be written again."""
    records = folder / "job.search" / "records"
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in records.rglob("*.json")}


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


def kl_of(place: Workspace) -> dict[str, float]:
    evaluation = place.read_json("evaluation.json")
    return {name: evaluation[name]["kl_nats"] for name in ("child", "uniform", "depth")}
