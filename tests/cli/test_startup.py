"""What must be quick stays quick: no torch, no transformers, no Ray, no MLflow for help, checks and reports."""

from __future__ import annotations

import json
import subprocess
import sys
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


def test_the_client_loads_nothing_heavy() -> None:
    """Which is checked with an address that nothing listens on: it is not asked before it has to be."""
    script = f"import sys, inlay; inlay.Client('127.0.0.1:9'); print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_help_loads_few_modules() -> None:
    """What its start takes, whatever else the machine does: Typer, rich and what is ours of it."""
    script = "import sys; from inlay.nas.cli import main\nassert main(['--help']) == 0\nprint(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout.splitlines()[-1]) < 600
