"""What a run refuses, and what it keeps when it fails: as a user sees it, through the command."""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def values(finished: Path) -> dict[str, Any]:
    """The values of the finished search's job, to be changed."""
    loaded: dict[str, Any] = yaml.safe_load((finished / "job.yaml").read_text())
    loaded["hardware"]["costs"] = str(finished / "job.search" / "tables" / "costs.parquet")
    return copy.deepcopy(loaded)


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The last line of stderr of a command that was refused; no traceback stands there."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_weight_that_is_not_a_number(tmp_path: Path, values: dict[str, Any], inlay_here: Run) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(values["parent"], tmp_path / "parent")
    for path in (tmp_path / "parent").iterdir():
        path.chmod(0o644)
    weights = load_file(tmp_path / "parent" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    (tmp_path / "parent" / "model.safetensors").unlink()
    save_file(weights, tmp_path / "parent" / "model.safetensors")
    folder = write(tmp_path, values | {"parent": "parent"})
    said = one_sentence(inlay_here("run", "job.yaml", cwd=folder), 2)
    assert "up_proj" in said
    assert "layer 1" in said
    assert not (folder / "job.search").exists()


@pytest.mark.slow
def test_a_full_scratch_disk(tmp_path: Path, values: dict[str, Any], inlay_here: Run) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(scratch)], check=False).returncode:
        pytest.skip("this account may not mount a tmpfs")
    try:
        values["cluster"]["scratch"] = str(scratch)
        said = one_sentence(inlay_here("run", "job.yaml", cwd=write(tmp_path, values)), 1)
    finally:
        subprocess.run(["umount", "-l", str(scratch)], check=True)
    told = (
        r"\d+ bytes could not be written to \S+/boundary-0000/shard-\d+\.safetensors: no space is left there; what is "
    )
    assert re.search(told + "finished stays: free some space and give the same command again", said), said


def test_a_workspace_of_another_parent(
    finished: Path, tmp_path: Path, values: dict[str, Any], inlay_here: Run, tiny_parent: Callable[..., Path]
) -> None:
    values |= {"parent": str(tiny_parent("llama")), "space": {"attention": ["no_op"], "ffn": ["no_op"]}}
    values["data"]["distill"]["sequence_length"] = 32
    values["hardware"] = {"scenarios": [{"batch_size": 1, "prefill": 8, "generate": 8}]}
    folder = write(tmp_path, values)
    before = sorted(path.name for path in (finished / "job.search").rglob("*"))
    said = one_sentence(inlay_here("run", "job.yaml", "-w", finished / "job.search", cwd=folder), 2)
    assert "belongs to the parent" in said
    assert sorted(path.name for path in (finished / "job.search").rglob("*")) == before


def test_a_folder_of_other_things_is_not_taken(tmp_path: Path, values: dict[str, Any], inlay_here: Run) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    folder = write(tmp_path, values)
    assert "thesis.txt" in one_sentence(inlay_here("run", "job.yaml", "-w", "mine", cwd=folder), 2)


def test_an_impossible_budget_is_told_before_anything_is_trained(
    tmp_path: Path, values: dict[str, Any], inlay_here: Run
) -> None:
    folder = write(tmp_path, values | {"budget": {"parameters": "0.01x"}})
    said = one_sentence(inlay_here("run", "job.yaml", cwd=folder), 3)
    assert "parameters reaches" in said
    assert "of the parent" in said
    assert not (folder / "job.search" / "records" / "distill").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_run_on_a_locked_workspace_and_a_lost_worker(
    tmp_path: Path, values: dict[str, Any], inlay_command: Run
) -> None:
    values["distill"] |= {"tokens": "400k"}
    folder = write(tmp_path, values)
    first = Command("run", "job.yaml", cwd=folder, session=True)
    try:
        wait_for(lambda: (folder / "job.search" / "workspace.json").exists(), first)
        said = one_sentence(inlay_command("run", "job.yaml", cwd=folder), 2)
        assert str(first.pid) in said
    finally:
        first.send_signal(signal.SIGINT)
        ended = first.completed(timeout=60)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


def wait_for(condition: Callable[[], bool], process: Command, seconds: float = 90) -> None:
    """Until the condition holds; fails when the process ends before or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early with {process.poll()}"
        assert time.monotonic() < end, "took too long"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_says_what_is_missing_and_keeps_the_rest(
    tmp_path: Path, values: dict[str, Any], inlay_here: Run
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        values["cluster"]["scratch"] = str(tmp_path / "scratch")
        folder = write(tmp_path, values)
        done = inlay_here("run", "job.yaml", "-w", small / "job.search", cwd=folder)
        said = one_sentence(done, 1)
        assert "bytes" in said
        assert str(small) in said
    finally:
        subprocess.run(["umount", str(small)], check=False)
