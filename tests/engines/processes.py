"""Processes of this machine, for tests that want none to be left."""

from __future__ import annotations

import time
from pathlib import Path

PATIENCE_SECONDS = 20.0


def left_in_group(group: int) -> list[int]:
    """Processes of a group that run still, once those that were killed have had time to end: a killed process ends
    when the kernel next runs it. One that has ended and that nobody has asked after is not among them."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := _running(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _running(group: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = place.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # gone meanwhile
            continue
        if int(own) == group and state != "Z":
            found.append(int(place.parent.name))
    return found
