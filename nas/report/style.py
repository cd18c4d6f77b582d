"""The report page's frame, and what stands under each picture."""

from __future__ import annotations

import base64
import hashlib
import html
from importlib.resources import files

CAPTIONS = {
    "pareto": (
        "Front",
        "Every architecture that was tried as a real model. A line joins what the tables predicted with what was "
        "found; upright lines show what recovery gained. Down and to the left is better. The pool is judged on the "
        "score text, recovered models on the report text. The filter below marks its candidates here too.",
    ),
    "architecture": (
        "Architecture",
        "What stands in each layer. Dark costs as much time as the parent's own subblock, white nothing. An empty "
        "dark cell is the parent's own; kv 2 has two key-value heads, w128 sees a window of 128 tokens, a number is "
        "the ffn's width, lin is one matrix, – is skipped.",
    ),
    "losses": (
        "Local distillation",
        "How far each variant's update stays from the parent's after training, as a share of the update's size.",
    ),
    "scores": (
        "Scores",
        "What replacing one subblock alone costs the whole model: the layers with dark rows are those to keep.",
    ),
    "recovery": ("Recovery", "Global distillation of the assembled child, and of the baselines with the same text."),
}

SENSITIVITY = (
    "POSIX: how much the log-probability of an answer changes, per token, when the prompt is written in another way "
    "that means the same: with slips of the keyboard, in small letters, behind an empty line. Lower is steadier; ± is "
    "the standard error over prompts."
)
TASKS = "± is the standard error; that of a difference is of the paired samples."

_FOLDER = files("inlay.nas.report")
_STYLE = _FOLDER.joinpath("page.css").read_text(encoding="utf-8")
_SCRIPT = _FOLDER.joinpath("page.js").read_text(encoding="utf-8")


def framed(title: str, body: str, library: str) -> str:
    """The whole page; browsers fetch nothing for it and run no script but `library` and the page's own.

    Args:
        title: as text.
        body: HTML.
        library: the script that draws charts, or nothing where there are none.
    """
    scripts = [library, _SCRIPT] if library else [_SCRIPT]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{_STYLE}</style>
</head>
<body>
{body}
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
