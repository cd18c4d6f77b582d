"""Which chart a record becomes."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from inlay.nas.report.charts.curves_chart import curves_chart
from inlay.nas.report.charts.grid_chart import grid_chart
from inlay.nas.report.charts.pareto_chart import pareto_chart
from inlay.nas.report.curves import CurvesRecord
from inlay.nas.report.grid import GridRecord
from inlay.nas.report.pareto import ParetoRecord


@singledispatch
def chart_of(record: object) -> Any:
    """The chart of a record."""
    raise TypeError(f"no chart is drawn of {type(record).__name__}")


chart_of.register(ParetoRecord)(pareto_chart)
chart_of.register(GridRecord)(grid_chart)
chart_of.register(CurvesRecord)(curves_chart)
