"""A picture of numbers by layer: one row a variant or a model, one column a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import isfinite

from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from inlay.nas.report.drawing import FAINT, INK, empty_figure

MOST_COLUMNS_WITH_TEXT = 24
MISSING = "#eef1f4"


@dataclass(frozen=True)
class Cell:
    """One number and the text that stands in its place; `value` None is drawn empty."""

    value: float | None
    text: str = ""


@dataclass(frozen=True)
class GridRecord:
    """What is drawn: `cells[row][layer]`; `logarithmic` colours by magnitude; `breaks` are rows with a line above;
    `colours` names a palette from light to dark."""

    title: str
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    unit: str
    logarithmic: bool = False
    low: float | None = None
    high: float | None = None
    breaks: tuple[int, ...] = ()
    colours: str = "Blues"


def draw_grid(record: GridRecord) -> Figure:
    """Dark is much; cells carry their text while there are few enough layers to read it."""
    columns = max((len(row) for row in record.cells), default=0)
    width = min(14.0, max(7.0, 2.4 + 0.52 * min(columns, MOST_COLUMNS_WITH_TEXT)))
    figure, axes = empty_figure(width, 1.3 + 0.3 * len(record.rows), record.title)
    values = [[math.nan if cell.value is None else cell.value for cell in row] for row in record.cells]
    image = axes.imshow(values, aspect="auto", cmap=record.colours, norm=norm_of(record), interpolation="nearest")
    axes.set_facecolor(MISSING)
    axes.grid(visible=False)
    axes.set_yticks(range(len(record.rows)), record.rows)
    step = max(1, columns // 20)
    axes.set_xticks(range(0, columns, step))
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for edge in range(columns + 1):
        axes.axvline(edge - 0.5, color="white", linewidth=1)
    for edge in range(len(record.rows) + 1):
        axes.axhline(edge - 0.5, color="white", linewidth=5 if edge in record.breaks else 1)
    if columns <= MOST_COLUMNS_WITH_TEXT:
        for y, row in enumerate(record.cells):
            for x, cell in enumerate(row):
                dark = cell.value is not None and image.norm(cell.value) > 0.55
                axes.text(x, y, cell.text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    bar.set_label(record.unit, color=INK, fontsize=9)
    bar.outline.set_edgecolor(FAINT)
    bar.ax.tick_params(labelsize=8)
    return figure


def short_number(value: float) -> str:
    """A number of at most four characters or so: 0.42, .013, 2e-4."""
    if value >= 0.095:
        return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
    if value >= 0.00095:
        return f"{value:.3f}".removeprefix("0")
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def norm_of(record: GridRecord) -> Normalize:
    """How dark a value is, 0 to 1."""
    finite = [cell.value for row in record.cells for cell in row if cell.value is not None and isfinite(cell.value)]
    if record.logarithmic:
        positive = [value for value in finite if value > 0] or [1.0]
        low, high = record.low or min(positive), record.high or max(positive)
        return LogNorm(low, max(high, low * 1.01), clip=True)
    low = min(finite, default=0.0) if record.low is None else record.low
    high = max(finite, default=1.0) if record.high is None else record.high
    return Normalize(low, max(high, low + 1e-12), clip=True)
