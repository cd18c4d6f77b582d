"""The `inlay` command: its verbs, and what every failure looks like.

A verb is one file with one function. No file here imports torch or transformers, nor anything that does, before its
verb runs and needs it.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from inlay.cluster.errors import ClusterError, LockedError
from inlay.nas.cli.chat import chat_command
from inlay.nas.cli.clean import clean_command
from inlay.nas.cli.compare import compare_command
from inlay.nas.cli.delete import delete_command
from inlay.nas.cli.doctor import doctor_command
from inlay.nas.cli.down import down_command
from inlay.nas.cli.evaluate import evaluate_command
from inlay.nas.cli.export import export_command
from inlay.nas.cli.init import init_command
from inlay.nas.cli.list import list_command
from inlay.nas.cli.logs import logs_command
from inlay.nas.cli.measure import measure_command
from inlay.nas.cli.plan import plan_command
from inlay.nas.cli.report import report_command
from inlay.nas.cli.resubmit import resubmit_command
from inlay.nas.cli.run import run_command
from inlay.nas.cli.show import show_command
from inlay.nas.cli.solve import solve_command
from inlay.nas.cli.status import status_command
from inlay.nas.cli.stop import stop_command
from inlay.nas.cli.submit import submit_command
from inlay.nas.cli.sweep import sweep_command
from inlay.nas.cli.tune import tune_command
from inlay.nas.cli.up import up_command
from inlay.nas.cli.validate import validate_command
from inlay.nas.cli.wait import wait_command
from inlay.nas.errors import InlayError, UserError
from inlay.version import __version__

JOBS, ANSWERS, CLUSTER, CARE = "Search", "Answers from a workspace", "Cluster", "Care"
INTERRUPTED = 130

app = typer.Typer(
    name="inlay",
    help="Turn a language model into a faster one that fits a stated budget and keeps its quality.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 infeasible budget, 4 job failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for name, panel, command in (
    ("init", JOBS, init_command),
    ("validate", JOBS, validate_command),
    ("plan", JOBS, plan_command),
    ("run", JOBS, run_command),
    ("measure", JOBS, measure_command),
    ("tune", JOBS, tune_command),
    ("solve", ANSWERS, solve_command),
    ("sweep", ANSWERS, sweep_command),
    ("evaluate", ANSWERS, evaluate_command),
    ("report", ANSWERS, report_command),
    ("compare", ANSWERS, compare_command),
    ("export", ANSWERS, export_command),
    ("chat", ANSWERS, chat_command),
    ("up", CLUSTER, up_command),
    ("down", CLUSTER, down_command),
    ("submit", CLUSTER, submit_command),
    ("status", CLUSTER, status_command),
    ("logs", CLUSTER, logs_command),
    ("wait", CLUSTER, wait_command),
    ("stop", CLUSTER, stop_command),
    ("list", CLUSTER, list_command),
    ("show", CLUSTER, show_command),
    ("resubmit", CLUSTER, resubmit_command),
    ("delete", CLUSTER, delete_command),
    ("doctor", CARE, doctor_command),
    ("clean", CARE, clean_command),
):
    app.command(name, rich_help_panel=panel)(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"inlay {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Nothing to do here: verbs do the work."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; every failure is one sentence on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, standalone_mode=False, prog_name="inlay")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        return _usage(error)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("stopped", INTERRUPTED)
    except InlayError as error:
        return _fail(str(error), error.exit_code)
    except LockedError as error:
        return _fail(str(error), UserError.exit_code)
    except ClusterError as error:
        return _fail(str(error), InlayError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has gone; so has nothing to say
        return 1
    except Exception as error:
        return _unexpected(error)


def _usage(error: typer.TyperException) -> int:
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("Value error, ", "")
    if not message:  # no verb at all: the help was printed
        return error.exit_code
    context = getattr(error, "ctx", None)
    if option := re.match(r"No such option: (\S+)", message):
        message = f"no such option {option[1]}"
        known = [name for parameter in context.command.params for name in parameter.opts] if context else []
        if close := difflib.get_close_matches(option[1], known, n=1):
            message += f"; did you mean {close[0]}?"
    message = message[:1].lower() + message[1:].replace(". Did you mean", "; did you mean")
    path = context.command_path if context else "inlay"
    return _fail(f"{message}{'' if message.endswith('?') else ';'} see {path} --help", error.exit_code)


def _unexpected(error: Exception) -> int:
    handle, path = tempfile.mkstemp(prefix="inlay-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return _fail(f"unexpected error ({text}); the traceback is in {path}, please send it with a report", 1)


def _fail(text: str, code: int) -> int:
    print(f"inlay: {text}", file=sys.stderr)
    return code
