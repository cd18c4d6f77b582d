"""The MLflow runs below a search's: one for each architecture that became a real model, with all that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inlay.cluster.events import PieceEvent
from inlay.cluster.tracking import TrackedRun, Tracker
from inlay.cluster.tracking_model import ServedModel
from inlay.nas.report.records import Evaluation
from inlay.nas.stages.recording.metric_names import figure_metrics, plain
from inlay.nas.tables.architecture import Blocks, identify

RECOVER = "recover"
"""The stage whose pieces train one model each."""
_PROBE = "probe "
"""What stands before the architecture in the label of a short training."""
_OF_POOL = (
    "predicted_kl_nats",
    "kl_nats",
    "standard_error",
    "probe_kl_nats",
    "predicted_runtime_ns",
    "measured_runtime_ns",
    "measured_ratio",
    "memory_bytes",
    "parameters",
)
LIVE_POINTS = 500
"""Of one piece's numbers, at most, that are told while it runs."""


@dataclass
class Live:
    """What was told of a series: how far its piece was, and the steps."""

    fraction: float = -1.0
    steps: set[int] = field(default_factory=set)

    def takes(self, event: PieceEvent) -> bool:
        """Whether this point is told: the last one, and `LIVE_POINTS` before it; none twice, since a training whose
        worker was lost takes steps again."""
        step = int(event.numbers["step"])
        if step in self.steps or (event.fraction < 1 and abs(event.fraction - self.fraction) < 1 / LIVE_POINTS):
            return False
        self.fraction = event.fraction
        self.steps.add(step)
        return True


class TrackedModels:
    """A run for each architecture, called `child`, `uniform`, `depth`, or `solution <id>` where it has no such name.

    Two that turn out to be the same architecture are one model, and one run with both names. A run is open while there
    is more to come.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._creation = ""
        self._names: dict[str, str] = {}
        self._runs: dict[str, TrackedRun] = {}
        self._open: dict[str, TrackedRun] = {}
        self._live: dict[tuple[str, str], Live] = {}
        self._told: dict[str, Mapping[str, Any]] = {}

    def start(self, creation: str) -> None:
        """The search's run is made by this name; those below it by names made of it."""
        self._creation = creation

    def name(self, labels: Mapping[str, str]) -> None:
        """Says what architectures are called: their ids by name; who had a name before and has none now loses it."""
        names: dict[str, list[str]] = {}
        for name, identifier in labels.items():
            names.setdefault(identifier, []).append(name)
        lost = {name for name in self._names if name not in names}
        self._names = {identifier: ", ".join(each) for identifier, each in names.items()}
        for identifier in (*names, *lost):
            if identifier in self._runs:
                self._runs[identifier].rename(self._name_of(identifier))

    def numbers(self, event: PieceEvent) -> None:
        """What a training reports while it runs, as metrics of its model at its optimizer steps."""
        training, identifier = _training_of(event.label)
        if self._live.setdefault((training, identifier), Live()).takes(event):
            self._point(identifier, training, event.numbers)

    def pool(self, rows: Sequence[Mapping[str, Any]], architectures: Mapping[str, Blocks]) -> None:
        """Candidates as assembled, rows of the pool table; their runs end, since most are never heard of again."""
        for row in rows:
            told = {name: row[name] for name in _OF_POOL if row[name] is not None}
            identifier = str(row["id"])
            if self._told.get(identifier) == told:
                continue
            self._told[identifier] = told
            run = self._run(identifier)
            run.params({"solution": identifier, "origin": row["origin"], "round": row["round"]})
            run.json("architecture.json", [list(block) for block in architectures[identifier]])
            run.metrics({f"assembled/{name}": value for name, value in told.items()})
            self._close(identifier, "FINISHED")

    def curves(self, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Recovery losses by architecture and optimizer step; those that were told while they came are left out."""
        for identifier, curve in curves.items():
            told = self._live.get((RECOVER, identifier), Live()).steps
            for point in curve:
                if int(point["step"]) not in told:
                    self._point(identifier, RECOVER, point)

    def evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """The figures of child and baselines."""
        shown = Evaluation.of(evaluation)
        self.name({model.name: identify(evaluation[model.name]["architecture"]) for model in shown.models[1:]})
        for model in shown.models[1:]:
            figures = evaluation[model.name]
            run = self._run(identify(figures["architecture"]))
            run.params({"solution": identify(figures["architecture"])})
            run.json("architecture.json", figures["architecture"])
            for prefix, values in figure_metrics("evaluate", figures):
                run.metrics({f"{prefix}/{key}": value for key, value in values.items()})
        chosen = self._run(identify(evaluation[str(evaluation["chosen"])]["architecture"]))
        for row in shown.tasks:
            chosen.metrics({f"evaluate/{plain(row.task)}/{plain(row.metric)}": row.child})

    def served(self, architecture: Blocks, model: ServedModel) -> None:
        """The one that was chosen, as a logged model."""
        self._run(identify(architecture)).model(model)

    def end(self, status: str) -> None:
        """Ends those that are open."""
        for identifier in list(self._open):
            self._close(identifier, status)

    def _point(self, identifier: str, training: str, numbers: Mapping[str, float]) -> None:
        values = {f"{training}/{key}": value for key, value in numbers.items() if key != "step"}
        self._run(identifier).metrics(values, step=int(numbers["step"]))

    def _run(self, identifier: str) -> TrackedRun:
        """The run of an architecture, open."""
        if identifier not in self._open:
            run = self._tracker.child(
                f"solution {identifier}",
                self._name_of(identifier),
                {"inlay.solution": identifier},
                f"{self._creation}-{identifier}",
            )
            self._runs[identifier] = self._open[identifier] = run
        return self._open[identifier]

    def _close(self, identifier: str, status: str) -> None:
        self._open.pop(identifier).end(status)

    def _name_of(self, identifier: str) -> str:
        return self._names.get(identifier) or f"solution {identifier}"


def _training_of(label: str) -> tuple[str, str]:
    """`recover` or `probe`, and the architecture's id."""
    return ("probe", label.removeprefix(_PROBE)) if label.startswith(_PROBE) else (RECOVER, label)
