"""What reports read from a workspace, as typed records; each says which file it comes from and what that must hold.

No torch here. A file that a search has not come to yet gives None or an empty list; a damaged one is an InlayError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inlay.nas.errors import InlayError
from inlay.nas.quantities import show_bytes, show_hours, show_operations, show_seconds
from inlay.nas.tables.architecture import Blocks, blocks_of
from inlay.nas.workspace import Workspace

MODELS = ("parent", "child", "uniform", "depth")
PARENT_LABELS = ("attention:parent", "ffn:parent")


TERMS = ("prefill", "decode", "runtime")
SIZES = {
    "file": ("predicted_file_bytes", "file_bytes"),
    "weights": ("weights_bytes", "held_weights_bytes"),
    "KV cache": ("kv_bytes", "held_kv_bytes"),
    "memory_peak": ("predicted_memory_peak_bytes", "memory_peak_bytes"),
}
"""Bytes by term: as predicted, and as engine or disk say."""


Interval = tuple[float, float]
"""Between these ends the true figure is, for 95 of 100 texts."""


@dataclass(frozen=True)
class SourceFigures:
    """One model on the part of the report text that is of one source."""

    kl_nats: float
    perplexity: float
    kl: Interval | None


@dataclass(frozen=True)
class Figures:
    """One model of `evaluation.json`: quality on the text kept for the report, exact sizes, speed.

    `kl`, `agreement` and `perplexity_ratio` (to the parent's) are intervals by documents, None where they are unknown;
    `sources` has the figures of several sources by name. `before_kl_nats` is the KL before recovery (None: unknown);
    `runtime_ratio` is to the parent, measured in turns with it, and has its standard error; `ratios` are times over the
    parent's by term, each as predicted and as measured; `sizes` are bytes by term (`SIZES`), None where one was not
    found out; `over_budget` has the limits that are missed, each with value over limit (1.07 is 7 % over). `kv_format`
    is what keys and values are stored in, None where the engine has one way.
    """

    name: str
    kl_nats: float
    perplexity: float
    top1_agreement: float
    parameters: int
    weights_bytes: int
    kv_bytes_per_token: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    runtime_seconds: float
    before_kl_nats: float | None = None
    kl_standard_error: float | None = None
    runtime_ratio: float | None = None
    runtime_ratio_error: float | None = None
    ratios: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    over_budget: Mapping[str, float] = field(default_factory=dict)
    kl: Interval | None = None
    agreement: Interval | None = None
    perplexity_ratio: Interval | None = None
    sources: Mapping[str, SourceFigures] = field(default_factory=dict)
    architecture: Blocks = ()
    kv_format: str | None = None

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any]) -> Figures:
        """From the JSON; raises KeyError for a figure that is not there."""
        return cls(
            name=name,
            **{key: values[key] for key in _REQUIRED},
            before_kl_nats=values.get("before_recover"),
            kl_standard_error=values.get("kl_standard_error"),
            runtime_ratio=values.get("runtime_ratio"),
            runtime_ratio_error=values.get("runtime_ratio_error"),
            ratios={
                term: (values[f"predicted_{term}_ratio"], values[f"{term}_ratio"])
                for term in TERMS
                if f"predicted_{term}_ratio" in values
            },
            sizes={term: (values.get(own), values.get(found)) for term, (own, found) in SIZES.items()},
            over_budget=values.get("over_budget") or {},
            kl=_interval(values, "kl"),
            agreement=_interval(values, "top1_agreement"),
            perplexity_ratio=_interval(values, "perplexity_ratio"),
            sources={
                name: SourceFigures(own["kl_nats"], own["perplexity"], _interval(own, "kl"))
                for name, own in values.get("sources", {}).items()
            },
            architecture=blocks_of(values.get("architecture") or ()),
            kv_format=values.get("kv_format"),
        )


@dataclass(frozen=True)
class Preset:
    """The parent in one of llama.cpp's own presets.

    Args:
        kl_nats: rounded with an importance of input channels.
    """

    name: str
    kl_nats: float
    weights_bytes: int
    runtime_ratio: float


@dataclass(frozen=True)
class PromptRow:
    """A prompt with what parent and child add to it; their first `same_tokens` tokens are the same."""

    prompt: str
    parent: str
    child: str
    same_tokens: int


@dataclass(frozen=True)
class TaskRow:
    """A metric of a task for parent and child; `difference` is the child's minus the parent's."""

    task: str
    metric: str
    samples: int | None
    parent: float
    parent_standard_error: float | None
    child: float
    child_standard_error: float | None
    difference: float
    difference_standard_error: float | None


@dataclass(frozen=True)
class SensitivityFigures:
    """How much answers depend on the wording of prompts, nats per token; each figure with its standard error."""

    prompts: int
    variations: int
    parent: tuple[float, float | None]
    child: tuple[float, float | None]
    difference: tuple[float, float | None]


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json`: `parent`, `child`, `uniform`, `depth`, of which the first two are always there."""

    models: tuple[Figures, ...]
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "evaluation.json") -> Evaluation:
        """From the JSON; raises InlayError naming what is missing."""
        try:
            models = tuple(Figures.of(name, values[name]) for name in MODELS if name in values)
        except (KeyError, TypeError) as error:
            raise InlayError(f"{source} is damaged (no {error}); delete it and run the job again") from None
        if [model.name for model in models[:2]] != ["parent", "child"]:
            raise InlayError(f"{source} has no parent or no child; delete it and run the job again")
        return cls(models, values)

    def model(self, name: str) -> Figures | None:
        """One model by name."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def presets(self) -> tuple[Preset, ...]:
        """llama.cpp's presets of the parent, where the search chose formats."""
        return tuple(Preset(name=name, **_only(Preset, row)) for name, row in (self.raw.get("presets") or {}).items())

    @property
    def prompts(self) -> tuple[PromptRow, ...]:
        """What parent and chosen child make of the same prompts."""
        return tuple(PromptRow(**row) for row in self.raw.get("prompts") or ())

    @property
    def tasks(self) -> tuple[TaskRow, ...]:
        """Tasks, where these were asked for."""
        return tuple(TaskRow(**row) for row in self.raw.get("tasks") or ())

    @property
    def sensitivity(self) -> SensitivityFigures | None:
        """Sensitivity to prompts, where it was asked for."""
        found = self.raw.get("sensitivity")
        if found is None:
            return None
        parent, child, apart = (
            (found[name]["nats"], found[name]["standard_error"]) for name in ("parent", "child", "child_above_parent")
        )
        return SensitivityFigures(found["prompts"], found["variations"], parent, child, apart)

    @property
    def chosen(self) -> str:
        """What the user gets: `child`, or the baseline that ended better."""
        return str(self.raw.get("chosen", "child"))

    @property
    def scenario(self) -> str | None:
        """The scenario of the times."""
        return self.raw.get("scenario")

    @property
    def times_given(self) -> bool:
        """Whether the times are those of a given cost table, and not measured."""
        return bool(self.raw["parent"].get("times") == "given")

    @property
    def parent(self) -> Figures:
        """The parent."""
        return self.models[0]

    @property
    def child(self) -> Figures:
        """The child."""
        return self.models[1]


@dataclass(frozen=True)
class PoolRow:
    """A row of `tables/pool.parquet`: an architecture that was tried as a real model.

    Times are those of the first scenario; `measured_ratio` is its runtime over the parent's, taken in turns, or None.
    """

    id: str
    origin: str
    predicted_kl_nats: float
    kl_nats: float
    predicted_runtime_ns: int
    measured_ratio: float | None
    kept: bool


@dataclass(frozen=True)
class ScoreRow:
    """A row of `tables/scores.parquet`: one block instead of the parent's at one layer."""

    layer: int
    attention: str
    ffn: str
    kl_nats: float
    standard_error: float | None


@dataclass(frozen=True)
class LossRow:
    """A row of `tables/losses.parquet`: a variant and its loss before and after local distillation (1 is a no-op's)."""

    layer: int
    variant: str
    status: str
    start_loss: float | None
    loss: float | None
    reason: str = ""


@dataclass(frozen=True)
class RecoveryRow:
    """A row of `tables/recovery.parquet`: the losses of one model at one point, evenly spaced over the training."""

    model: str
    point: int
    loss: float
    kl_nats: float


@dataclass(frozen=True)
class StageRow:
    """A stage in `run.json`: its wall time, its pieces, the largest worker's memory, what its pieces held, and what the
    plan had for it: seconds, operations and bytes of weights that pieces read."""

    name: str
    seconds: float
    peak_bytes: int | None = None
    pieces: int | None = None
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    planned_seconds: float = 0.0
    operations: float = 0.0
    read_bytes: float = 0.0


@dataclass(frozen=True)
class SolutionRow:
    """`solution.json` (the kept one) or a file of `solutions/`: an architecture, its predicted KL and, once it was
    tried as a real model, its true one."""

    id: str
    architecture: Blocks
    predicted_kl_nats: float | None
    kl_nats: float | None


def read_evaluation(workspace: Workspace) -> Evaluation | None:
    """The figures of the chosen child, or None before a search has come to them."""
    values = workspace.find_json("evaluation.json")
    return None if values is None else Evaluation.of(values, f"{workspace.url}/evaluation.json")


def read_pool(workspace: Workspace) -> list[PoolRow]:
    """Every architecture that was tried."""
    return [PoolRow(**_only(PoolRow, row)) for row in read_rows(workspace, "pool")]


def read_scores(workspace: Workspace) -> list[ScoreRow]:
    """The score table, of layers; embedding and head, at layer -1, are none."""
    return [ScoreRow(**_only(ScoreRow, row)) for row in read_rows(workspace, "scores") if row["layer"] >= 0]


def read_losses(workspace: Workspace) -> list[LossRow]:
    """What local distillation reached."""
    return [LossRow(**_only(LossRow, row)) for row in read_rows(workspace, "losses")]


def read_recovery(workspace: Workspace) -> list[RecoveryRow]:
    """Curves of global distillation."""
    return [RecoveryRow(**_only(RecoveryRow, row)) for row in read_rows(workspace, "recovery")]


def read_solution(workspace: Workspace, solution: str | None = None) -> SolutionRow | None:
    """The kept solution, or the one with an id; None where it is not there."""
    if solution is not None and not solution.isalnum():
        return None
    values = workspace.find_json("solution.json" if solution is None else f"solutions/{solution}.json")
    return None if values is None else solution_row(values)


def solution_row(values: Mapping[str, Any]) -> SolutionRow:
    """From the JSON."""
    true_kl = values.get("kl_nats")
    if true_kl is None and "evaluation" in values:
        true_kl = values["evaluation"]["child"]["kl_nats"]
    return SolutionRow(
        id=str(values["id"]),
        architecture=blocks_of(values["architecture"]),
        predicted_kl_nats=values.get("predicted_kl_nats"),
        kl_nats=true_kl,
    )


def read_stages(workspace: Workspace) -> list[StageRow]:
    """Stages in the order they ran."""
    return stages_of(workspace.find_json("run.json") or {})


def work_columns(stages: Sequence[StageRow]) -> dict[str, tuple[list[str], str]]:
    """By title, what the plan had for stages and what they held of the cluster, and the sum; no column of nothing."""
    figures: dict[str, tuple[list[float], Callable[[float], str]]] = {
        "planned": ([stage.planned_seconds for stage in stages], lambda seconds: f"~{show_seconds(seconds)}"),
        "FLOPs": ([stage.operations for stage in stages], show_operations),
        "weights read": ([stage.read_bytes for stage in stages], show_bytes),
        "CPU hours": ([stage.cpu_hours for stage in stages], show_hours),
        "GPU hours": ([stage.gpu_hours for stage in stages], show_hours),
    }
    return {
        title: ([show(each) if each else "" for each in values], show(sum(values)))
        for title, (values, show) in figures.items()
        if any(values)
    }


def stages_of(run: Mapping[str, Any]) -> list[StageRow]:
    """Stages of a `run.json`."""
    return [StageRow(**_only(StageRow, row)) for row in run.get("stages") or ()]


def read_rows(workspace: Workspace, table: str) -> list[dict[str, Any]]:
    """The rows of a table; none while it is not there."""
    return workspace.read_table(table) if workspace.store.exists(f"tables/{table}.parquet") else []


def _only(record: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    names = record.__dataclass_fields__
    return {name: value for name, value in row.items() if name in names}


def _interval(values: Mapping[str, Any], name: str) -> Interval | None:
    low, high = (values.get(f"{name}_{end}") for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


_REQUIRED = (
    "kl_nats",
    "perplexity",
    "top1_agreement",
    "parameters",
    "weights_bytes",
    "kv_bytes_per_token",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "runtime_seconds",
)
