"""The command as a process and in this one, and a right job on a tiny parent to bend."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml

from inlay.nas.cli import main

Inlay = Callable[..., "subprocess.CompletedProcess[str]"]
WriteJob = Callable[..., Path]


@pytest.fixture(scope="session")
def inlay() -> Inlay:
    """`inlay("validate", job)` runs the command and gives exit code, stdout and stderr."""

    def run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", **environment}
        return commands.run(*arguments, cwd=cwd, env=settings, timeout=300)

    return run


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`answer("solve", table)` runs the command in this process and gives what it prints as JSON."""

    def run(*words: object, code: int = 0) -> Any:
        assert main([*map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal("solve", table)` gives what a command says when it refuses; nothing goes to stdout."""

    def run(*words: object, code: int = 2) -> str:
        assert main([*map(str, words)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("inlay: ")
        return err

    return run


@pytest.fixture
def write_job(tmp_path: Path, tiny_parent: Callable[..., Path]) -> WriteJob:
    """`write_job(path=value, ...)` writes a job on a tiny Llama; dotted paths in a mapping change single fields."""

    def write(changes: dict[str, Any] | None = None, parent: Path | None = None) -> Path:
        for name, count in (("train", 60), ("held_out", 40)):
            (tmp_path / f"{name}.txt").write_text("".join(f"{name} story {n}\n<|endoftext|>\n" for n in range(count)))
        job: dict[str, Any] = {
            "parent": str(parent or tiny_parent("llama")),
            "data": {
                "distill": {"path": "train.txt", "sequence_length": 16},
                "validate": {"path": "held_out.txt", "tokens": 256},
            },
            "space": {"attention": [{"kv_heads": 1}, {"window": 8}, "no_op"], "ffn": [{"width": 0.5}, "linear"]},
            "distill": {"tokens": 64, "batch_size": 2},
            "recover": {"tokens": 64, "batch_size": 2},
            "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]},
            "budget": {"parameters": "0.9x"},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place = job
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        return file

    return write
