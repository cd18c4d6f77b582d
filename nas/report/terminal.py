"""Which display a run has: live where there is a terminal that can draw, else plain lines."""

from __future__ import annotations

import sys
from typing import TextIO

from inlay.nas.report.progress import Reporter


def make_reporter(stream: TextIO | None = None) -> Reporter:
    """The live display where `stream` (default stderr) is a terminal that can draw, else plain lines."""
    from rich.console import Console

    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        return Reporter(stream)
    from inlay.nas.report.live import LiveReporter

    return LiveReporter(console)
