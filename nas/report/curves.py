"""Recovery: how global distillation brought the KL down, for the child and for the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from inlay.nas.quantities import show_count
from inlay.nas.report.drawing import COLOURS, empty_figure, scale_for
from inlay.nas.report.records import MODELS, RecoveryRow


@dataclass(frozen=True)
class CurvesRecord:
    """What is drawn: for each model (tokens, KL in nats) points, smoothed over neighbours."""

    curves: Mapping[str, tuple[tuple[float, float], ...]]


def curves_record(rows: Sequence[RecoveryRow], tokens: int) -> CurvesRecord:
    """Computes the picture; `tokens` is the length of the training."""
    curves = {}
    for name in MODELS:
        values = [row.kl_nats for row in sorted(rows, key=lambda row: row.point) if row.model == name]
        if values:
            steps = [tokens * (place + 1) / len(values) for place in range(len(values))]
            curves[name] = tuple(zip(steps, smoothed(values, max(1, len(values) // 25)), strict=True))
    return CurvesRecord(curves)


def draw_curves(record: CurvesRecord) -> Figure:
    """KL against tokens."""
    figure, axes = empty_figure(8, 3.6, "Recovery: KL on the text being trained on")
    for name, points in record.curves.items():
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, color=COLOURS[name], linewidth=2.2 if name == "child" else 1.4, label=name)
    scale_for(axes, [value for points in record.curves.values() for _, value in points])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    axes.set_xlabel("tokens")
    axes.set_ylabel("KL, nats per token")
    axes.legend(frameon=False, fontsize=9)
    return figure


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and `reach - 1` before it."""
    return [sum(values[max(0, i - reach + 1) : i + 1]) / min(i + 1, reach) for i in range(len(values))]
