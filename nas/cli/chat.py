"""`inlay chat`: the child and its parent side by side."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from inlay.nas.cli.output import WorkspaceArgument, print_json, print_rich

if TYPE_CHECKING:
    from inlay.nas.stages.chat import Chat, Exchange

WIDE = 100
"""Columns from which on the answers stand side by side."""


def chat_command(
    workspace: WorkspaceArgument,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Answer this and end; default: ask, line by line.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="New tokens at most.")] = 128,
    solution: Annotated[
        str | None,
        typer.Option("--solution", help="child, uniform, depth, or a solution's id; default: the one that was chosen."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the text as it is, without the tokenizer's chat template.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; without --prompt, a line for each prompt.")
    ] = False,
) -> None:
    """Run the child and its parent side by side, in the search's engine."""
    from transformers.utils import logging

    from inlay.nas.stages.chat import open_chat
    from inlay.nas.workspace import Workspace

    place = Workspace(workspace).last_round()
    place.require()
    # Transformers draws one for every model that it makes.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if prompt is not None:
        with open_chat(place, solution, tokens, raw) as chat:
            exchange = chat.exchange(prompt)
            if as_json:
                print_json({**chat.about(), **exchange.to_dict()})
            else:
                _show(exchange)
        return
    try:
        with open_chat(place, solution, tokens, raw) as chat:
            _converse(chat, as_json)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the shell's next line begins behind ^C otherwise


def _converse(chat: Chat, as_json: bool) -> None:
    told = f"{chat.solution} and parent in {chat.engine}; every line is a prompt of its own, an empty one ends"
    print(told, file=sys.stderr)
    for line in _lines():
        if problem := chat.problem(line):
            print(problem, file=sys.stderr)
        elif as_json:
            print(json.dumps({**chat.about(), **chat.exchange(line).to_dict()}, allow_nan=False), flush=True)
        else:
            _show(chat.exchange(line))
            sys.stdout.flush()


def _lines() -> Iterator[str]:
    """Lines of the terminal or the pipe, up to an empty one."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _show(exchange: Exchange) -> None:
    if not sys.stdout.isatty():
        print(f"child:\n{exchange.child.text}\n\nparent:\n{exchange.parent.text}\n")
        for row in _speeds(exchange):
            print("".join(f"{cell:<8}" if column == 0 else f"{cell:>18}" for column, cell in enumerate(row)).rstrip())
        print()
        return
    from rich.table import Table
    from rich.text import Text

    wide = shutil.get_terminal_size().columns >= WIDE
    texts = Table(expand=True)
    answers = {"child": Text(exchange.child.text), "parent": Text(exchange.parent.text)}
    if wide:
        for name in answers:
            texts.add_column(name, ratio=1)
        texts.add_row(*answers.values())
    else:
        texts = Table(expand=True, show_header=False, show_lines=True)
        for name, text in answers.items():
            texts.add_row(name, text)
    speeds = Table(box=None)
    head, *rows = _speeds(exchange)
    for column, name in enumerate(head):
        speeds.add_column(name, justify="right" if column else "left")
    for row in rows:
        speeds.add_row(*row)
    print_rich(texts, speeds)


def _speeds(exchange: Exchange) -> list[list[str]]:
    """Rows of the table of speeds, its head first."""
    rows = [["", "new tokens", "prefill tokens/s", "decode tokens/s"]]
    for name, answer in (("child", exchange.child), ("parent", exchange.parent)):
        decode = answer.decode_tokens_per_second
        shown = "" if decode is None else f"{decode:,.1f}"
        rows.append([name, str(answer.tokens), f"{answer.prefill_tokens_per_second:,.1f}", shown])
    ratio = exchange.decode_ratio
    rows.append(["ratio", "", f"{exchange.prefill_ratio:.2f}x", "" if ratio is None else f"{ratio:.2f}x"])
    return rows
