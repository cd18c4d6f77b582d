"""Usage: did-you-mean for verbs and options, the frozen surface, help, failures without a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from inlay.cluster.errors import LockedError, StoreError
from inlay.nas.cli import app as command_line
from inlay.nas.cli import main
from inlay.nas.errors import InfeasibleError, InlayError, JobFailedError, UserError

Captured = pytest.CaptureFixture[str]

SURFACE: dict[str, set[str]] = {
    "init": {"--demo", "--parent", "--text", "--held-out", "--force"},
    "validate": {"--json"},
    "plan": {"--json"},
    "run": {"--workspace", "-w"},
    "measure": {"--output", "-o", "--again", "--list", "--clear", "--json"},
    "tune": {
        "--trials",
        "--timeout",
        "--metric",
        "--workspace",
        "-w",
        "--storage",
        "--output",
        "-o",
        "--json",
    },
    "solve": {
        "--limit",
        "--minimize",
        "--maximize",
        "--any-scenario",
        "--pairs",
        "--solutions",
        "--min-difference",
        "--gap",
        "--method",
        "--backend",
        "--time-limit",
        "--sensitivity",
        "--json",
    },
    "sweep": {"--limit", "--points", "--minimize", "--pairs", "--gap", "--time-limit", "--json"},
    "evaluate": {"--solution", "--tasks", "--task-folder", "--prompts", "--markdown", "--json"},
    "report": {"--output", "-o", "--solution", "--json"},
    "compare": {"--json"},
    "export": {"--output", "-o", "--format", "--for", "--type", "--solution"},
    "chat": {"--prompt", "--tokens", "--solution", "--raw", "--json"},
    "submit": {"--workspace", "-w", "--id", "--tag", "--wait"},
    "status": set(),
    "logs": {"--follow", "-f", "--tail"},
    "wait": {"--timeout"},
    "stop": {"--tag"},
    "list": {"--state", "--tag", "--limit", "--mine"},
    "show": {"--job"},
    "resubmit": {"--id"},
    "delete": set(),
    "doctor": {"--json"},
    "clean": {"--yes", "-y", "--json"},
}
OF_A_JOB_SERVER = ("submit", "status", "logs", "wait", "stop", "list", "show", "resubmit", "delete")
"""They have three options more."""


def test_the_surface_is_frozen() -> None:
    commands = typer.main.get_command(command_line.app).commands  # type: ignore[attr-defined]
    for verb, options in SURFACE.items():
        held = {name for parameter in commands[verb].params for name in parameter.opts if name.startswith("-")}
        more = {"--address", "--insecure", "--json"} if verb in OF_A_JOB_SERVER else set()
        assert held == options | more, verb


def test_the_docs_have_every_verb_and_option() -> None:
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    rows = document.partition("\nThe verbs that talk to a job server")[0].splitlines()
    for verb, options in SURFACE.items():
        (row,) = [row for row in rows if row.startswith((f"| `{verb} ", f"| `{verb}`"))]
        assert all(option in row for option in options), verb


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "inlay: no such command 'rnu'; did you mean 'run'? see inlay --help"),
        (["frobnicate"], "inlay: no such command 'frobnicate'; see inlay --help"),
        (["run", "--workspce", "x"],
         "inlay: no such option --workspce; did you mean --workspace? see inlay run --help"),
        (["run"], "inlay: missing argument 'JOB'; see inlay run --help"),
        (["export", "w", "-o", "d", "--format", "hff"],
         "inlay: invalid value for '--format': 'hff' is not one of 'hf', 'deci', 'gguf', 'compressed-tensors', "
         "'packed'; see inlay export --help"),
        (["init", "--demo", "--parent", "x"],
         "inlay: --demo brings its own parent and text; leave out --parent, --text and --held-out"),
    ],
)  # fmt: skip
def test_usage_errors(arguments: list[str], said: str, capsys: Captured) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == said + "\n"


def test_help_and_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("inlay 0.")
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(verb in told for verb in SURFACE)
    for verb in SURFACE:
        assert main([verb, "--help"]) == 0
    assert main([]) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [(InlayError("a"), 1), (UserError("a"), 2), (InfeasibleError("a"), 3), (JobFailedError("a"), 4),
     (StoreError("a"), 1), (LockedError("a"), 2), (KeyboardInterrupt(), 130)],
)  # fmt: skip
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    assert main(["run", "x"]) == code
    assert capsys.readouterr().err == ("inlay: stopped\n" if code == 130 else "inlay: a\n")


def test_what_nobody_expected_is_one_sentence_and_a_file(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(command_line, "app", fail)
    assert main(["run", "x"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("inlay: unexpected error (KeyError: 'surprise'); the traceback is in ")
    assert said.count("\n") == 1
    path = Path(said.split("the traceback is in ")[1].split(",")[0])
    assert "KeyError: 'surprise'" in path.read_text()
    path.unlink()


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m inlay.nas.cli init --demo - | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("# A search by inlay")


def test_completion(inlay: Callable[..., Any]) -> None:
    done = inlay(_INLAY_COMPLETE="complete_bash", COMP_WORDS="inlay va", COMP_CWORD="1")
    assert done.stdout.strip() == "validate"
