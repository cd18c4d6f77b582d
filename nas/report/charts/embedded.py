"""What all charts share: Bokeh's own script, an empty chart, and a chart as data of a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bokeh.embed import json_item
from bokeh.models import BoxZoomTool, HoverTool, LogTicker, NumeralTickFormatter, PanTool, ResetTool, WheelZoomTool
from bokeh.plotting import figure
from bokeh.resources import Resources

from inlay.nas.report.drawing import spans_much

LIBRARY = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)
"""BokehJS without widgets, tables and formulas: 1.3 MB."""
HEIGHT_PIXELS = 400
MOST_AT_ONCE = 4
"""Points below one place whose values are shown."""


def empty_chart(values: Sequence[float], height: int = HEIGHT_PIXELS, **options: Any) -> Any:
    """A chart as wide as its box; `values` of the upright axis say whether that is logarithmic."""
    is_logarithmic = spans_much(values)
    options |= {"y_axis_type": "log"} if is_logarithmic else {}
    chart = plain_chart(height, **options)
    chart.yaxis.formatter = NumeralTickFormatter(format="0.[0000]")
    if is_logarithmic:
        chart.yaxis.ticker = LogTicker(mantissas=[1, 2, 5])
    else:
        chart.y_range.start = 0
    return chart


def plain_chart(height: int, **options: Any) -> Any:
    """A chart with its tools; none of them takes a finger's or a wheel's movement from the page before it is chosen."""
    tools = [PanTool(), BoxZoomTool(), WheelZoomTool(), ResetTool()]
    # The box stretches; a chart that was given a least width is scrolled in it.
    chart = figure(height=height, sizing_mode="stretch_width", tools=tools, toolbar_location="above", **options)
    chart.toolbar.logo = None
    chart.toolbar.active_drag = chart.toolbar.active_scroll = None
    chart.outline_line_color = chart.border_fill_color = chart.background_fill_color = None
    return chart


def add_hover(chart: Any, renderers: Sequence[Any], *lines: tuple[str, str]) -> None:
    """What stands beside a point that is pointed at, or touched."""
    chart.add_tools(HoverTool(renderers=list(renderers), tooltips=list(lines), limit=MOST_AT_ONCE, visible=False))


def add_legend(chart: Any) -> None:
    """Below, where it hides nothing of a narrow chart; a touch hides what a name in it stands for."""
    legend = chart.legend[0]
    chart.add_layout(legend, "below")
    legend.orientation, legend.ncols, legend.click_policy = "horizontal", 2, "hide"
    legend.label_text_font_size, legend.background_fill_color, legend.border_line_color = "11px", None, None
    legend.padding = legend.spacing = 2


def chart_data(chart: Any) -> str:
    """The chart as JSON that may stand in a script element: nothing in it ends that."""
    return json.dumps(json_item(chart), separators=(",", ":")).replace("<", "\\u003c")


def shortened(values: Sequence[float]) -> list[float]:
    """Five digits are more than is seen."""
    return [float(f"{value:.5g}") for value in values]
