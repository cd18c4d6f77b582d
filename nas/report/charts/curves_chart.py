"""Recovery to point at."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource

from inlay.nas.report.charts.embedded import add_hover, add_legend, empty_chart, shortened
from inlay.nas.report.curves import CurvesRecord
from inlay.nas.report.drawing import COLOURS

MOST_POINTS = 400
"""Of a curve: as many as a chart is wide, about."""

UNITS = ((1_000_000_000, "billions of tokens"), (1_000_000, "millions of tokens"), (1000, "thousands of tokens"))


def curves_chart(record: CurvesRecord) -> Any:
    """KL against tokens, a line a model."""
    chart = empty_chart([value for points in record.curves.values() for _, value in points], height=320)
    longest = max((tokens for points in record.curves.values() for tokens, _ in points), default=0)
    unit, words = next(((size, name) for size, name in UNITS if longest >= size), (1, "tokens"))
    chart.xaxis.axis_label, chart.yaxis.axis_label = words, "KL, nats per token"
    lines = []
    for name, points in record.curves.items():
        every = -(-len(points) // MOST_POINTS)
        # Counted from the end, which is what it came to.
        kept = points[::-1][::every][::-1]
        xs, ys = zip(*kept, strict=True)
        tokens = shortened([x / unit for x in xs])
        source = ColumnDataSource({"tokens": tokens, "kl": shortened(ys), "name": [name] * len(xs)})
        width = 2.4 if name == "child" else 1.6
        lines.append(
            chart.line("tokens", "kl", source=source, color=COLOURS[name], line_width=width, legend_label=name)
        )
    add_hover(chart, lines, ("model", "@name"), (words, "@tokens{0.[00]}"), ("KL", "@kl{0.0000}"))
    add_legend(chart)
    return chart
