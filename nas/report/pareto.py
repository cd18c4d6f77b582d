"""The front: every architecture that was tried, predicted and true, with the child and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from inlay.nas.report.drawing import COLOURS, FAINT, MARKERS, empty_figure, scale_for
from inlay.nas.report.records import Evaluation, PoolRow


@dataclass(frozen=True)
class Tried:
    """One architecture of the pool: runtime relative to the parent and KL in nats, predicted and true."""

    id: str
    predicted_ratio: float
    predicted_kl_nats: float
    ratio: float
    """Measured where it was, else the predicted one."""
    kl_nats: float
    kept: bool


@dataclass(frozen=True)
class Ended:
    """A model of the evaluation: measured ratio, KL before and after recovery."""

    name: str
    ratio: float
    before_kl_nats: float
    kl_nats: float


@dataclass(frozen=True)
class ParetoRecord:
    """What is drawn. `front` lists the tried ones that no other beats in both, fastest first; `presets` are name, ratio
    and KL of llama.cpp's."""

    tried: tuple[Tried, ...]
    front: tuple[Tried, ...]
    ended: tuple[Ended, ...]
    presets: tuple[tuple[str, float, float], ...] = ()

    @property
    def kl_nats(self) -> list[float]:
        """Every KL that is drawn."""
        tried = [value for each in self.tried for value in (each.predicted_kl_nats, each.kl_nats)]
        ended = [value for each in self.ended for value in (each.before_kl_nats, each.kl_nats)]
        return [*tried, *ended, *(kl for *_, kl in self.presets)]


def pareto_record(
    pool: Sequence[PoolRow], parent_runtime_ns: float, evaluation: Evaluation | None = None
) -> ParetoRecord:
    """Computes the picture from the pool table, the parent's predicted runtime, and the figures if they are there."""
    tried = tuple(
        Tried(
            id=row.id,
            predicted_ratio=row.predicted_runtime_ns / parent_runtime_ns,
            predicted_kl_nats=row.predicted_kl_nats,
            ratio=row.predicted_runtime_ns / parent_runtime_ns if row.measured_ratio is None else row.measured_ratio,
            kl_nats=row.kl_nats,
            kept=row.kept,
        )
        for row in pool
    )
    models = evaluation.models[1:] if evaluation else ()
    ended = tuple(
        Ended(model.name, model.runtime_ratio, model.before_kl_nats, model.kl_nats)
        for model in models
        if model.runtime_ratio is not None and model.before_kl_nats is not None
    )
    presets = tuple((own.name, own.runtime_ratio, own.kl_nats) for own in evaluation.presets) if evaluation else ()
    return ParetoRecord(tried, _front(tried), ended, presets)


def draw_pareto(record: ParetoRecord) -> Figure:
    """Hollow points are predictions, full ones the truth; upright lines are what recovery gained."""
    figure, axes = empty_figure(8, 4.8, "KL to the parent against runtime")
    blue = COLOURS["pool"]
    if record.tried:
        lines = [((t.predicted_ratio, t.predicted_kl_nats), (t.ratio, t.kl_nats)) for t in record.tried]
        axes.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.7, alpha=0.6, zorder=2))
        places = {"facecolors": "none", "edgecolors": FAINT, "s": 26, "linewidths": 1.0, "zorder": 3}
        axes.scatter(
            *_xy([(t.predicted_ratio, t.predicted_kl_nats) for t in record.tried]), **places, label="predicted"
        )
        axes.scatter(
            *_xy([(t.ratio, t.kl_nats) for t in record.tried]), color=blue, s=26, zorder=4, label="tried, true KL"
        )
        steps = [(t.ratio, t.kl_nats) for t in record.front]
        axes.step(*_xy(steps), where="post", color=blue, linewidth=1.2, alpha=0.6, zorder=3, label="front")
    for model in record.ended:
        _draw_ended(axes, model)
    for name, ratio, kl_nats in record.presets:
        axes.scatter([ratio], [kl_nats], marker="x", s=34, color=FAINT, zorder=6)
        axes.annotate(name, (ratio, kl_nats), xytext=(4, 4), textcoords="offset points", fontsize=8, color=FAINT)
    scale_for(axes, record.kl_nats)
    axes.scatter([1.0], [0.0], marker=MARKERS["parent"], s=50, color=COLOURS["parent"], clip_on=False, zorder=6,
                 transform=axes.get_xaxis_transform(), label="parent (KL 0)")  # fmt: skip
    axes.set_xlabel("runtime, relative to the parent")
    axes.set_ylabel("KL, nats per token")
    axes.set_xlim(right=max(1.04, axes.get_xlim()[1]))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _draw_ended(axes: Any, each: Ended) -> None:
    colour, marker = COLOURS[each.name], MARKERS[each.name]
    size = 150 if each.name == "child" else 55
    axes.plot([each.ratio] * 2, [each.before_kl_nats, each.kl_nats], color=colour, linewidth=1.4, zorder=5)
    axes.scatter(
        [each.ratio], [each.before_kl_nats], marker=marker, s=size, facecolors="white", edgecolors=colour, zorder=6
    )
    axes.scatter(
        [each.ratio], [each.kl_nats], marker=marker, s=size, color=colour, zorder=7, label=f"{each.name}, recovered"
    )


def _front(tried: Sequence[Tried]) -> tuple[Tried, ...]:
    front: list[Tried] = []
    for each in sorted(tried, key=lambda t: (t.ratio, t.kl_nats)):
        if not front or each.kl_nats < front[-1].kl_nats:
            front.append(each)
    return tuple(front)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
