"""Charts of the report page: the pictures' records again, to point at, zoom into and move about in a browser.

Bokeh is imported here and nowhere else, when a page is written.
"""

from inlay.nas.report.charts.embedded import LIBRARY, chart_data
from inlay.nas.report.charts.registry import chart_of

__all__ = ["LIBRARY", "chart_data", "chart_of"]
