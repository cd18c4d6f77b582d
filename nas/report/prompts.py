"""What parent and child make of the same prompts: as a text, and as a part of the report page."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator
from itertools import takewhile

from inlay.nas.report.records import Evaluation
from inlay.nas.report.sentences import counted

WIDTH = 100


def prompts_text(evaluation: Evaluation) -> str:
    """All prompts one below the other, each with both answers, for a reader without the page."""
    lines: list[str] = []
    for number, row in enumerate(evaluation.prompts, start=1):
        lines += [f"{number}. {counted(row.same_tokens, 'token')} the same", ""]
        for name, text in (("prompt", row.prompt), ("parent", row.parent), (evaluation.chosen, row.child)):
            lines += [f"{name}:", *_indented(text), ""]
    return "\n".join(lines)


def prompts_html(evaluation: Evaluation) -> Iterator[str]:
    """A row a prompt, both answers beside each other; from where they part on, the child's is marked."""
    if not evaluation.prompts:
        return
    yield "<h2>Side by side</h2>"
    yield "<div class=table><table class=texts>"
    yield f"<tr><th>prompt</th><th>parent</th><th>{html.escape(evaluation.chosen)}</th></tr>"
    for row in evaluation.prompts:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row.parent, row.child, strict=False)))
        rest = row.child[same:]
        child = html.escape(row.child[:same]) + (f"<mark>{html.escape(rest)}</mark>" if rest else "")
        yield f"<tr><td>{html.escape(row.prompt)}</td><td>{html.escape(row.parent)}</td><td>{child}</td></tr>"
    yield "</table></div>"
    yield (
        "<p class=caption>Both continue the beginnings of documents that nothing has seen, always with the likeliest "
        "token. Marked is what the parent does not say.</p>"
    )


def _indented(text: str) -> list[str]:
    wrapped = (line for part in text.splitlines() or [""] for line in textwrap.wrap(part, WIDTH) or [""])
    return [f"    {line}".rstrip() for line in wrapped]
