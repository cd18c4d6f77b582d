"""How figures are called in MLflow: its pages make a group of all that stands before the last slash."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
"""What MLflow takes in no metric's name, and slashes."""


def plain(name: str) -> str:
    """Part of a metric's name: a name of somebody else's, of a source or a task, without what MLflow refuses."""
    return _NOT_IN_NAMES.sub("_", name).strip(".") or "_"


def figure_metrics(group: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """One model's figures of evaluation.json, every number once: groups and what is in them, `group` and below it one
    for each source of the report text."""
    yield group, _numbers(figures)
    for source, own in figures.get("sources", {}).items():
        yield f"{group}/{plain(source)}", _numbers(own)


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
