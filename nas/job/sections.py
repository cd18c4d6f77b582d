"""The sections of a job file, one frozen model each, mirrored one to one from the YAML.

Each field's description is its documentation: `inlay init` and docs/job.md print it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from inlay.cluster.on_end import check_url
from inlay.nas.families.registered import check_model_alias, check_model_name
from inlay.nas.formats import FORMATS
from inlay.nas.job.fields import Bytes, Count, Number, Seconds, Section
from inlay.nas.problems import FieldProblems, did_you_mean, show

LARGEST_COUNT = 10**15
LONGEST_PATH = 4_096
LONGEST_NAME = 200
DIGEST = r"^[0-9a-f]{64}$"
SCENARIO_NAME = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"


class Source(Section):
    """One source of a text."""

    path: str = Field(
        min_length=1,
        max_length=LONGEST_PATH,
        description="A file (.txt, .jsonl, .parquet, .arrow), a folder of them, or inlay:pystdlib/train.",
    )
    weight: Number = Field(default=1.0, ge=0, description="Its tokens among all, in proportion to the others' weights.")
    field: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_NAME,
        description="The field of its records; default: the text's.",
    )
    digest: str | None = Field(
        default=None, pattern=DIGEST, description="sha256 that it must have, as sources.json of a workspace has it."
    )


def _as_sources(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, str):
        return ({"path": value},)
    if not isinstance(value, list | tuple):
        raise ValueError("is neither a path nor a list of {path, weight}")
    return tuple({"path": item} if isinstance(item, str) else item for item in value)


def _weighted(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    if sources and not sum(source.weight for source in sources):
        raise ValueError("has weights that sum to nothing; give at least one source a weight above 0")
    return sources


def _as_written(sources: tuple[Source, ...]) -> object:
    """A path where nothing else is said."""
    if len(sources) == 1 and sources[0] == Source(path=sources[0].path):
        return sources[0].path
    return [source.model_dump(mode="json") for source in sources] or None


Sources = Annotated[
    tuple[Source, ...], BeforeValidator(_as_sources), AfterValidator(_weighted), PlainSerializer(_as_written)
]
"""A path, or a list of sources with weights."""


# What both texts have; each lists them where they belong.
_SAMPLE: Any = Field(
    default=None,
    ge=8,
    le=LARGEST_COUNT,
    description="Where there is no text: so many tokens that the parent writes.",
)
_TEMPERATURE: Any = Field(default=1.0, gt=0, le=10, description="At which it writes them.")
_SEPARATOR: Any = Field(
    default="<|endoftext|>",
    min_length=1,
    max_length=1_000,
    description="A line that is only this ends a document (.txt).",
)
_FIELD: Any = Field(
    default=None,
    min_length=1,
    max_length=LONGEST_NAME,
    description="The field that holds a record's text; default: text, else messages.",
)


class _Text(Section):
    """A text is read from somewhere, or written by the parent."""

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        path, sample = (getattr(self, name) for name in ("path", "sample"))
        if not path and sample is None:
            raise FieldProblems([(".path", "is missing; name a text, or give `sample` for one that the parent writes")])
        if path and sample is not None:
            raise FieldProblems([(".sample", "there is a path too; leave out one of them")])
        return self


class DistillText(_Text):
    """The text that variants and the child are trained on."""

    path: Sources = Field(default=(), description="Text to train on, or a list of {path, weight}: docs/text.md.")
    sample: Count | None = _SAMPLE
    temperature: Number = _TEMPERATURE
    sequence_length: Count = Field(default=256, ge=8, le=2**20, description="Tokens in a sequence of it.")
    separator: str = _SEPARATOR
    field: str | None = _FIELD


class ValidateText(_Text):
    """The text that judges: three quarters of its documents score and rank, one quarter is kept for the report."""

    path: Sources = Field(default=(), description="Text to judge on, or a list of {path, weight}: docs/text.md.")
    sample: Count | None = _SAMPLE
    temperature: Number = _TEMPERATURE
    tokens: Count = Field(default=64_000, ge=8, le=LARGEST_COUNT, description="Tokens of it to use at most.")
    sequence_length: Count | None = Field(
        default=None,
        ge=8,
        le=2**20,
        description="Tokens in a sequence; default: the longest scenario's, at least distill's.",
    )
    separator: str = _SEPARATOR
    field: str | None = _FIELD


def sources_by_field(text: DistillText | ValidateText, part: str) -> dict[str, Source]:
    """The sources that are read, by the path of the job's field that names each; `part` is `distill` or `validate`."""
    if len(text.path) == 1:
        return {f"data.{part}.path": text.path[0]}
    return {f"data.{part}.path[{place}].path": source for place, source in enumerate(text.path) if source.weight}


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # pydantic's long deprecated BaseModel.validate has the same name

    class Data(Section):
        """The two texts of a search."""

        distill: DistillText = Field(description="Text for local and global distillation.")
        validate: ValidateText = Field(description="Text that scores and reports.")  # type: ignore[assignment]

        def judged_length(self, scenarios: Iterable[Scenario]) -> int:
            """Tokens in a sequence of the text that judges: as long as a child will serve, unless the job says."""
            longest = max((scenario.prefill + scenario.generate for scenario in scenarios), default=0)
            return self.validate.sequence_length or max(self.distill.sequence_length, longest)


class Distill(Section):
    """Local distillation: every variant learns to reproduce the parent at its place."""

    tokens: Count = Field(
        default=500_000, ge=0, le=LARGEST_COUNT, description="Training tokens for each variant; 0: no training."
    )
    learning_rate: Number = Field(default=3e-3, gt=0, le=1, description="Peak rate of AdamW, or the highest tried.")
    rate: Literal["found", "pinned"] = Field(
        default="found", description="found: a short test picks each variant's rate; pinned: it is learning_rate."
    )
    batch_size: Count = Field(default=8, ge=1, le=65_536, description="Sequences in a step.")
    warmup: Number = Field(default=0.05, ge=0, lt=1, description="Share of the steps in which the rate climbs.")
    weight_decay: Number = Field(default=0.0, ge=0, lt=1, description="AdamW weight decay, norms and biases excepted.")
    guided: bool = Field(default=False, description="Train a part first, and on only what may still enter a solution.")
    through: Literal["subblock", "layer"] = Field(
        default="subblock",
        description="What an attention variant must reproduce: its own update or its layer's.",
    )


class Score(Section):
    """The score table."""

    pairs: Count = Field(
        default=8, ge=0, le=10_000, description="Blocks scored jointly, to fit how two changes add up."
    )


class Solve(Section):
    """The choice of the architecture."""

    pool: Count = Field(default=8, ge=1, le=1_000, description="Different solutions to try as real models.")
    min_difference: Number = Field(default=0.2, ge=0, le=1, description="Share of layers in which two of them differ.")
    time_limit: Seconds = Field(default=60.0, gt=0, le=86_400, description="Longest time for a pool.")
    corrections: Count = Field(
        default=3, ge=0, le=20, description="Rounds at most in which the pool's true KL corrects the scores."
    )


class Scenario(Section):
    """A workload that costs are measured for."""

    name: str = Field(default="default", pattern=SCENARIO_NAME, description="Name; budget keys and tables use it.")
    batch_size: Count = Field(default=1, ge=1, le=65_536, description="Sequences at once.")
    prefill: Count = Field(default=128, ge=1, le=2**24, description="Prompt tokens in each.")
    generate: Count = Field(default=128, ge=1, le=2**24, description="Tokens generated after it.")
    threads: Count = Field(default=1, ge=1, le=4_096, description="CPU threads of the model that is measured.")


def _known_format(name: str) -> str:
    known = ("auto", "parent", *FORMATS)
    if name not in known:
        raise ValueError(f"is not a format; {did_you_mean(name, known)}there are {', '.join(known)}")
    return name


KV_FORMATS = ("f16", "q8_0")


def _known_caches(value: object) -> str | tuple[str, ...]:
    """One name, or several of which the search chooses."""
    if not isinstance(value, list | tuple):
        if value not in ("auto", *KV_FORMATS):
            raise ValueError(
                f"is no cache; write auto, {' or '.join(KV_FORMATS)}, or a list: [{', '.join(KV_FORMATS)}]"
            )
        return str(value)
    problems = []
    for index, form in enumerate(value):
        if form not in KV_FORMATS:
            problems.append((f"[{index}]", f"{show(form)} is no cache; there are {', '.join(KV_FORMATS)}"))
        elif form in value[:index]:
            problems.append((f"[{index}]", f"{show(form)} is there twice; leave one out"))
    if problems or not value:
        raise FieldProblems(
            problems or [("", f"{show(value)} is empty; name one cache or several, such as [f16, q8_0]")]
        )
    return tuple(value) if len(value) > 1 else str(value[0])


def _listed(value: object) -> object:
    return (value,) if isinstance(value, dict | Scenario) else value


class Hardware(Section):
    """Where the child is going to run."""

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda|cuda:\d{1,3})$", description="cpu, cuda or cuda:N.")
    gpu: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Kind of GPU, by Ray's name (H100); workers run nowhere else. Default: any.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Number format; auto: float32 on CPUs, the parent's elsewhere."
    )
    scenarios: Annotated[tuple[Scenario, ...], BeforeValidator(_listed)] = Field(
        default=(Scenario(),), min_length=1, max_length=64, description="Workloads to measure and budget for."
    )
    engine: Literal["transformers", "llama.cpp", "vllm"] = Field(
        default="transformers", description="What runs the child: its times and bytes are the budget's."
    )
    format: Annotated[str, AfterValidator(_known_format)] = Field(
        default="auto", description="How the engine stores numbers; auto: what it takes unasked (docs/engines.md)."
    )
    kv_format: Annotated[str | tuple[str, ...], BeforeValidator(_known_caches)] = Field(
        default="auto", description="How llama.cpp stores keys and values: f16 (auto), q8_0; a list: what is better."
    )
    python: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_PATH,
        description="The interpreter that has the engine (path or name); default: this one.",
    )
    costs: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_PATH,
        description="A cost table to use instead of measuring (.parquet or .csv).",
    )


STEPS_WANTED = 400
LARGEST_BATCH = 8


class Tail(Section):
    """The end of recovery, in longer sequences."""

    tokens: Count = Field(
        default=0, ge=0, le=LARGEST_COUNT, description="The last so many of recover.tokens; 0: there is no tail."
    )
    sequence_length: Count = Field(default=1024, ge=8, le=2**20, description="Tokens in a sequence of the tail.")


class Recover(Section):
    """Global distillation of the assembled child against the parent."""

    tokens: Count = Field(default=4_000_000, ge=0, le=LARGEST_COUNT, description="Training tokens; 0: no training.")
    learning_rate: Number = Field(default=3e-3, gt=0, le=1, description="Peak rate of AdamW, or the highest tried.")
    rate: Literal["found", "pinned"] = Field(
        default="found", description="found: a short test picks each model's rate; pinned: it is learning_rate."
    )
    batch_size: Count | None = Field(
        default=None, ge=1, le=65_536, description="Sequences in a step; default: 1 to 8, at least 400 steps."
    )
    warmup: Number = Field(default=0.05, ge=0, lt=1, description="Share of the steps in which the rate climbs.")
    weight_decay: Number = Field(default=0.0, ge=0, lt=1, description="AdamW weight decay, norms and biases excepted.")
    train: Literal["all", "replaced", "adapters"] = Field(
        default="all", description="replaced: only what replaces the parent's; adapters: LoRA. Both in less memory."
    )
    tail: Tail = Field(default=Tail(), description="The end of the training, in longer sequences.")
    probes: Count = Field(
        default=8, ge=0, le=1_000, description="Candidates that get a short recovery first; the best one is kept."
    )
    workers: Count = Field(default=1, ge=1, le=65_536, description="Ranks that train one model together.")
    sharding: Literal["none", "full"] = Field(
        default="none", description="full: each rank holds its share of the weights (FSDP2); none: all of them."
    )

    def step_sequences(self, sequence_length: int) -> int:
        """Sequences in a step: those of the job, or as many as leave `STEPS_WANTED` steps, the same for each rank.

        Few are better for the same tokens (benchmarks/results/quality.md); where tokens are many, more are faster. They
        have the tokens of one sequence of the tail a rank at least.
        """
        if self.batch_size is not None:
            return self.batch_size
        least = -(-self.tail.sequence_length * self.workers // sequence_length) if self.tail.tokens else 1
        wanted = max(least, min(LARGEST_BATCH, self.tokens // (sequence_length * STEPS_WANTED)))
        return -(-wanted // self.workers) * self.workers

    def tail_batch(self, sequence_length: int) -> int:
        """Sequences of the tail in a step, where others have `sequence_length` tokens: as many tokens as there."""
        return max(1, self.step_sequences(sequence_length) * sequence_length // self.tail.sequence_length)

    @property
    def probed(self) -> int:
        """How many candidates are probed: none where nothing is trained."""
        return self.probes if self.tokens else 0


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # every abstract class has a method `register`

    class Tracking(Section):
        """Where the search is to be seen: MLflow."""

        experiment: str = Field(default="inlay", min_length=1, max_length=200, description="MLflow experiment.")
        uri: str | None = Field(
            default=None,
            min_length=1,
            max_length=LONGEST_PATH,
            description="MLflow store; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
        )
        register: Annotated[str, AfterValidator(check_model_name)] | None = Field(
            default=None, max_length=LONGEST_NAME, description="Registered model that the child becomes a version of."
        )
        alias: Annotated[str, AfterValidator(check_model_alias)] | None = Field(
            default=None, max_length=LONGEST_NAME, description="Alias that this version gets, such as champion."
        )


class Cluster(Section):
    """What Ray may use; nothing here changes a result, but for the last bits where a worker has several CPUs."""

    max_workers: Count | None = Field(
        default=None, ge=1, le=100_000, description="Pieces at once at most; default: as many as fit."
    )
    cpus_per_worker: Count = Field(default=1, ge=1, le=4_096, description="CPUs of a worker, and its threads.")
    gpus_per_worker: Number | None = Field(
        default=None, ge=0, le=1, description="GPUs of a worker, 0.5 is half of one; default: 1 on cuda, else 0."
    )
    memory_per_worker: Bytes | None = Field(
        default=None, ge=2**26, description="Memory that a worker books on its node, such as 2GiB; default: none."
    )
    address: str | None = Field(
        default=None, min_length=1, max_length=300, description="A running Ray cluster; default: this machine."
    )
    priority: Literal["low", "normal", "high"] = Field(
        default="normal", description="Of a submitted job: higher ones begin first, equal ones as they came."
    )
    scratch: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_PATH,
        description="Folder for what is dropped after use; default: in the workspace.",
    )
    patience: Seconds = Field(
        default=1800.0, ge=1, le=864_000, description="A piece without progress for so long is tried again."
    )
    on_end: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None, max_length=2_000, description="URL that is told how the job ended, where the cluster allows it."
    )
