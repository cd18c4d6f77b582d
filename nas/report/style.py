"""The report page's frame, and what stands under each picture."""

from __future__ import annotations

CAPTIONS = {
    "pareto": (
        "Front",
        "Every architecture that was tried as a real model. A line joins what the tables predicted with what was "
        "found; upright lines show what recovery gained. Down and to the left is better. The pool is judged on the "
        "score text, recovered models on the report text.",
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

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1f2933; background: #fff;
       max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid #e4e8ec; }
.where { color: #66717d; font-size: .85rem; margin: .25rem 0 1.5rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.cards div { background: #f4f6f8; border-radius: 8px; padding: .8rem 1rem; }
.cards b { display: block; font-size: 1.5rem; color: #0f7b4f; }
.cards span { font-size: .82rem; color: #4b5563; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #e4e8ec; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: pre; }
th { font-weight: 600; }
.texts td, .texts th { text-align: left; vertical-align: top; width: 33.3%; }
.texts { table-layout: fixed; }
.texts td { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.35; font-size: .86rem; }
mark { background: #fdf0d5; color: inherit; }
img { max-width: 100%; height: auto; display: block; }
.caption { color: #4b5563; font-size: .88rem; max-width: 46rem; margin: .4rem 0 0; }
.note { background: #fff7e6; border-left: 4px solid #d98e04; padding: .5rem .8rem; font-size: .92rem; }
pre { background: #f4f6f8; border-radius: 8px; padding: 1rem; font-size: .82rem; overflow-x: auto; }
@media print { h2 { break-after: avoid; } img, table { break-inside: avoid; } }
</style>
</head>
<body>
{body}
</body>
</html>
"""
