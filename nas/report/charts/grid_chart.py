"""Numbers by layer to point at: what a cell says also where layers are too many to write in them."""

from __future__ import annotations

import math
from typing import Any

from bokeh.models import BasicTicker, ColorBar, ColumnDataSource, FactorRange, LinearColorMapper, LogColorMapper
from bokeh.palettes import all_palettes, interp_palette

from inlay.nas.report.charts.embedded import add_hover, plain_chart, shortened
from inlay.nas.report.drawing import INK
from inlay.nas.report.grid import MISSING, MOST_COLUMNS_WITH_TEXT, GridRecord, norm_of

ROW_PIXELS, FRAME_PIXELS, NAMES_PIXELS = 22, 120, 150


def grid_chart(record: GridRecord) -> Any:
    """The same as `draw_grid`."""
    cells = [
        (row, layer, cell)
        for row, line in zip(record.rows, record.cells, strict=True)
        for layer, cell in enumerate(line)
        if cell.value is not None or cell.text
    ]
    norm = norm_of(record)
    columns = max((len(line) for line in record.cells), default=0)
    is_written = columns <= MOST_COLUMNS_WITH_TEXT
    chart = plain_chart(
        FRAME_PIXELS + ROW_PIXELS * len(record.rows),
        y_range=FactorRange(*reversed(record.rows)),
        x_range=(-0.5, columns - 0.5),
        min_width=NAMES_PIXELS + (28 if is_written else 6) * columns,
    )
    values = [math.nan if cell.value is None else cell.value for _, _, cell in cells]
    source = ColumnDataSource({
        "row": [row for row, _, _ in cells],
        "layer": [layer for _, layer, _ in cells],
        "value": shortened(values),
        "text": [cell.text for _, _, cell in cells],
    })  # fmt: skip
    palette = interp_palette(all_palettes[record.colours][9][::-1], 256)
    scaled = LogColorMapper if record.logarithmic else LinearColorMapper
    mapper = scaled(palette=palette, low=norm.vmin, high=norm.vmax, nan_color=MISSING)
    rects = chart.rect(
        "layer",
        "row",
        width=0.96,
        height=0.92,
        source=source,
        fill_color={"field": "value", "transform": mapper},
        line_color=None,
    )
    if is_written:
        source.add(["white" if not math.isnan(v) and norm(v) > 0.55 else INK for v in values], "ink")
        chart.text(
            "layer",
            "row",
            text="text",
            source=source,
            text_color="ink",
            text_font_size="10px",
            text_align="center",
            text_baseline="middle",
        )
    chart.add_layout(
        ColorBar(color_mapper=mapper, title=record.unit, height=8, padding=4, background_fill_color=None), "below"
    )
    chart.xaxis.axis_label, chart.xaxis.ticker = "layer", BasicTicker(min_interval=1, num_minor_ticks=0)
    chart.grid.visible = False
    add_hover(chart, [rects], ("layer", "@layer"), ("", "@row"), (record.unit, "@value{0.[00000]}"), ("cell", "@text"))
    return chart
