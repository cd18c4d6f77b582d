"""What must be quick stays quick: no torch, no transformers, no Ray, no MLflow for help, checks and reports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "ray", "mlflow", "optuna", "matplotlib")
PROBE = """
import json, sys
from inlay.nas.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, [name for name in %r if name in sys.modules]]), file=sys.stderr)
"""


def heavy_after(*arguments: str | Path) -> list[str]:
    """Which heavy libraries a process had loaded when the command ended."""
    script = PROBE % (HEAVY,)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return list(loaded)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["init", "--demo", "-"], ["measure", "--list"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_after(*arguments) == []


def test_validate_loads_nothing_heavy(write_job: Callable[..., Path]) -> None:
    assert heavy_after("validate", write_job()) == []


def test_help_starts_at_once() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "inlay.nas.cli", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import json"], check=True)
    bare = time.perf_counter() - bare
    assert min(seconds() for _ in range(3)) < max(1.0, 12 * bare)  # a busy machine slows both
