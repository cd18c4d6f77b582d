"""What all pictures share: colours, an empty figure of the right size, and saving it the same way every time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, FAINT, GRID = "#1f2933", "#8a94a0", "#e4e8ec"
COLOURS = {"parent": "#4b5563", "child": "#0f7b4f", "uniform": "#c2570c", "depth": "#7c3aed", "pool": "#2f6fb3"}
MARKERS = {"parent": "D", "child": "*", "uniform": "s", "depth": "^"}
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "inlay",
}


def empty_figure(width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure with one pair of axes, a title at the left and quiet lines; sizes in inches."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def spans_much(values: Sequence[float]) -> bool:
    """Whether `values` are to be drawn by their magnitude."""
    positive = [value for value in values if value > 0] or [1.0]
    return max(positive) >= 5 * min(positive)


def scale_for(axes: Any, values: Sequence[float]) -> None:
    """Scales the upright axis: logarithmic with plain numbers where `values` span much, else linear from 0."""
    if not spans_much(values):
        axes.set_ylim(0, 1.08 * max([value for value in values if value > 0], default=1.0))
        return

    def text(value: float, _: int) -> str:
        digits = f"{value:.3e}"
        return f"{value:g}" if digits[0] in "125" and digits[1:5] == ".000" else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(text))
    axes.yaxis.set_minor_formatter(FuncFormatter(text))


def svg_of(figure: Figure) -> bytes:
    """The figure as SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def png_of(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
