"""Local losses and scores: how well each variant learnt its place at each layer, and what it costs in quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from inlay.nas.report.grid import Cell, GridRecord, short_number
from inlay.nas.report.records import PARENT_LABELS, LossRow, ScoreRow
from inlay.nas.variants import parse_variant


def loss_record(rows: Sequence[LossRow]) -> GridRecord:
    """Computes the picture of local distillation: the normalised MSE reached, 1 being as bad as leaving it out."""
    failed = {(row.layer, row.variant) for row in rows if row.status == "failed"}
    values = {(row.layer, row.variant): row.loss for row in rows if (row.layer, row.variant) not in failed}
    title = "Local distillation: error of each variant (× failed)"
    return _record(title, "error, 1 = left out", values, failed, logarithmic=False)


def score_record(rows: Sequence[ScoreRow]) -> GridRecord:
    """Computes the picture of the scores: KL of the whole model with one subblock replaced."""
    values: dict[tuple[int, str], float | None] = {}
    for row in rows:
        if row.ffn == PARENT_LABELS[1]:
            values[row.layer, row.attention] = row.kl_nats
        elif row.attention == PARENT_LABELS[0]:
            values[row.layer, row.ffn] = row.kl_nats
    return _record("Scores: KL with one subblock replaced", "nats per token", values, set(), True)


def _record(
    title: str,
    unit: str,
    values: dict[tuple[int, str], float | None],
    failed: set[tuple[int, str]],
    logarithmic: bool,
) -> GridRecord:
    places = [*values, *failed]
    labels = sorted({label for _, label in places}, key=lambda label: parse_variant(label).rank)
    layers = 1 + max((layer for layer, _ in places), default=-1)
    cells = tuple(tuple(_cell((layer, label), values, failed) for layer in range(layers)) for label in labels)
    first_ffn = next((row for row, label in enumerate(labels) if label.startswith("ffn:")), 0)
    low, high = (None, None) if logarithmic else (0.0, 1.0)
    breaks = (first_ffn,) if first_ffn else ()
    return GridRecord(title, tuple(labels), cells, unit, logarithmic, low, high, breaks, colours="OrRd")


def _cell(
    place: tuple[int, str], values: dict[tuple[int, str], float | None], failed: Iterable[tuple[int, str]]
) -> Cell:
    if place in failed:
        return Cell(None, "×")
    value = values.get(place)
    return Cell(None) if value is None else Cell(value, short_number(value))
