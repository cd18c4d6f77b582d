"""The front to point at: each candidate's id, figures and predictions."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource, Span

from inlay.nas.report.charts.embedded import add_hover, add_legend, empty_chart, shortened
from inlay.nas.report.drawing import COLOURS, FAINT
from inlay.nas.report.pareto import Ended, ParetoRecord, Tried

SHAPES = {"child": "star", "uniform": "square", "depth": "triangle"}
TRIED = "tried"
"""The points that the page's filter of candidates dims, by the name of what draws them."""


def pareto_chart(record: ParetoRecord) -> Any:
    """The same as `draw_pareto`; a dotted line is the parent's runtime."""
    chart = empty_chart(record.kl_nats)
    chart.xaxis.axis_label = "runtime, relative to the parent"
    chart.yaxis.axis_label = "KL, nats per token"
    chart.add_layout(Span(location=1.0, dimension="height", line_color=FAINT, line_dash="dotted"))
    if record.tried:
        _add_tried(chart, record.tried)
        front = shortened([each.ratio for each in record.front]), shortened([each.kl_nats for each in record.front])
        chart.step(*front, mode="after", color=COLOURS["pool"], alpha=0.7, legend_label="front")
    for model in record.ended:
        _add_ended(chart, model)
    if record.presets:
        names, ratios, nats = zip(*record.presets, strict=True)
        source = ColumnDataSource({"name": names, "ratio": shortened(ratios), "kl": shortened(nats)})
        presets = chart.scatter(
            "ratio", "kl", source=source, marker="x", size=9, color=FAINT, legend_label="llama.cpp's presets"
        )
        add_hover(chart, [presets], ("preset", "@name"), ("runtime", "@ratio{0.000}x"), ("KL", "@kl{0.0000}"))
    add_legend(chart)
    return chart


def _add_tried(chart: Any, tried: tuple[Tried, ...]) -> None:
    source = ColumnDataSource({
        "id": [each.id for each in tried],
        "ratio": shortened([each.ratio for each in tried]),
        "kl": shortened([each.kl_nats for each in tried]),
        "predicted_ratio": shortened([each.predicted_ratio for each in tried]),
        "predicted_kl": shortened([each.predicted_kl_nats for each in tried]),
    })  # fmt: skip
    chart.segment(
        "predicted_ratio", "predicted_kl", "ratio", "kl", source=source, color=FAINT, alpha=0.5, line_width=0.7
    )
    chart.scatter(
        "predicted_ratio",
        "predicted_kl",
        source=source,
        size=6,
        fill_color=None,
        line_color=FAINT,
        legend_label="predicted",
    )
    true = chart.scatter(
        "ratio", "kl", source=source, size=8, color=COLOURS["pool"], legend_label="tried, true KL", name=TRIED
    )
    add_hover(
        chart,
        [true],
        ("candidate", "@id"),
        ("tried", "@ratio{0.000}x, KL @kl{0.0000}"),
        ("predicted", "@predicted_ratio{0.000}x, KL @predicted_kl{0.0000}"),
    )


def _add_ended(chart: Any, each: Ended) -> None:
    """A model before recovery, hollow, and after it."""
    values = {"name": [each.name], "ratio": [each.ratio], "before": [each.before_kl_nats], "kl": [each.kl_nats]}
    source, size = ColumnDataSource(values), 18 if each.name == "child" else 11
    looks = {"source": source, "legend_label": f"{each.name}, recovered", "line_color": COLOURS[each.name]}
    chart.segment("ratio", "before", "ratio", "kl", line_width=1.4, **looks)
    shape = SHAPES[each.name]
    before = chart.scatter("ratio", "before", marker=shape, size=size, fill_color=None, **looks)
    after = chart.scatter("ratio", "kl", marker=shape, size=size, fill_color=COLOURS[each.name], **looks)
    add_hover(
        chart,
        [before, after],
        ("model", "@name"),
        ("runtime", "@ratio{0.000}x"),
        ("KL before recovery", "@before{0.0000}"),
        ("KL recovered", "@kl{0.0000}"),
    )
