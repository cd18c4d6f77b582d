"""What every stage is given: the job, the workspace, the parent, and the one way to fan pieces out."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inlay.cluster.cost import Cost
from inlay.cluster.events import PieceEvent
from inlay.cluster.fanout import run_pieces
from inlay.cluster.here import run_pieces_here
from inlay.cluster.pieces import Piece, Record, piece_key, piece_seed
from inlay.cluster.runtime import Cluster, ClusterSettings
from inlay.cluster.store import Store
from inlay.nas.engines.engine import Engine, Target
from inlay.nas.engines.registry import ENGINES, format_of, kv_format_of, storage_of
from inlay.nas.families import Described, Parent
from inlay.nas.formats.codes import CODES
from inlay.nas.formats.kept import FOLDER
from inlay.nas.job import Job
from inlay.nas.job.locations import is_hub_id
from inlay.nas.loop.resources import resources_of
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.pieces.stage import Stage
from inlay.nas.report.best import Best
from inlay.nas.report.progress import Reporter
from inlay.nas.tables.architecture import Blocks, cache_form
from inlay.nas.variants import SearchSpace
from inlay.nas.variants.mixed import MixedSpace
from inlay.nas.variants.storage import Storage
from inlay.nas.workspace import Workspace


@dataclass
class Search:
    """One run of a job on a workspace; stages read it and add nothing to it but records and tables."""

    job: Job
    workspace: Workspace
    parent: Parent
    cluster: Cluster
    reporter: Reporter
    on_numbers: Callable[[PieceEvent], None] = lambda event: None
    """Told of what pieces report beside their progress."""
    on_names: Callable[[Mapping[str, str]], None] = lambda labels: None
    """Told what the models are called whose pieces report numbers: labels by name."""
    on_best: Callable[[Best], None] = lambda best: None
    """Told of the best architecture so far whenever it is another one."""
    records: dict[str, Record] = field(default_factory=dict)
    """Records of the stage that runs, by key, for its report."""
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    """Device and versions where times are taken, by clock, once a worker was asked."""
    times_read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What records of measured times hold, by their place in the store, once they were read."""
    inputs: str = ""
    """The digest of what rounding is weighed by, once it was gathered; "" where it is not."""
    spent: Cost = field(default_factory=Cost)
    """What the pieces of the stage that runs have held of the cluster."""
    on_spent: Callable[[], None] = lambda: None
    """Told that `spent` grew."""
    mixes: Mapping[tuple[int, Slot], Sequence[str]] = field(default_factory=dict)
    """In what subblocks are offered whose matrices may differ, once that is known."""
    scratch_peak_bytes: int = 0
    """The largest worker's memory in the stage's pieces whose records are not kept."""
    original: Parent | None = None
    """The model that the parent is a child of, where the job names one."""

    @property
    def reference(self) -> Parent:
        """Whom children learn from, and are compared with in quality, bytes and times."""
        return self.original or self.parent

    @property
    def base(self) -> dict[str, Any]:
        """Arguments that every piece's worker needs to find the parent and its compute type."""
        return {
            "parent": self._place(self.job.parent, self.parent),
            "dtype": compute_dtype(self.job, self.parent),
            "device": self.job.hardware.device,
            "inputs": self.inputs,
            **({} if self.original is None else {"original": self.reference_place}),
        }

    @property
    def reference_place(self) -> str:
        """Where workers find the reference."""
        return self._place(self.job.original or self.job.parent, self.reference)

    def _place(self, name: str, parent: Parent) -> str:
        """A folder that all nodes share, or a hub id at its commit: each node has its own cache of the hub."""
        return f"{name}@{self.job.revision}" if is_hub_id(name, self.job.folder) else str(parent.folder)

    @property
    def space(self) -> SearchSpace:
        """The job's space, with the mixes of formats that are offered."""
        return MixedSpace(self.job.space, self.mixes) if self.mixes else self.job.space

    @property
    def engine(self) -> Engine:
        """What will run the child."""
        return ENGINES[self.job.hardware.engine]

    @property
    def target(self) -> Target:
        """Where the engine runs."""
        return target_of(self.job, self.parent)

    @property
    def storage(self) -> Storage:
        """How the engine keeps models."""
        return storage_of(self.job.hardware, self.parent.shape)

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """What a worker needs to find the engine."""
        return {"engine": self.engine.name, "target": asdict(self.target)}

    @property
    def scratch(self) -> Path:
        """Where what can be computed again lies."""
        return scratch_of_job(self.job, self.workspace)

    @property
    def identity(self) -> dict[str, Any]:
        """What every piece's result depends on beside its own settings."""
        own = {"parent": self.parent.digest, "dtype": compute_dtype(self.job, self.parent)}
        return own if self.original is None else {**own, "original": self.original.digest}

    def piece(self, stage: Stage, label: str, arguments: dict[str, Any], depends_on: dict[str, Any]) -> Piece:
        """A piece of a stage, keyed by all that its result depends on.

        Args:
            stage: its stage.
            label: its name within the stage, for people and for order.
            arguments: what the function is given beside `base`; paths and handles may stand here.
            depends_on: JSON data that decides the result; never paths of this machine.
        """
        return Piece(
            key=piece_key(stage.name, stage.version, depends_on, self.identity, label),
            label=label,
            stage=stage.name,
            version=stage.version,
            function=stage.function,
            arguments={**self.base, **arguments},
            resources=resources_of(self.job),
            seed=piece_seed(self.job.seed, label),
        )

    def rounding(self, architectures: Iterable[Iterable[Iterable[str]]]) -> dict[str, str]:
        """What results depend on where subblocks among these labels are rounded."""
        rounded = any("@" in label for blocks in architectures for block in blocks for label in block)
        return {"inputs": self.inputs} if rounded and self.inputs else {}

    def cache_of(self, architecture: Blocks = ()) -> str:
        """What the keys and values of an architecture, or of the search's own models, are rounded to; "" where they are
        not."""
        form = cache_form(architecture) or self.target.kv_format
        return form if form is not None and form in CODES else ""

    def cache_rounding(self, architecture: Blocks = ()) -> dict[str, str]:
        """What the KL of a whole model depends on where its keys and values are rounded."""
        form = self.cache_of(architecture)
        return {"kv_format": form} if form else {}

    def part(self, end: float, batches: int | None = None) -> None:
        """Says that what follows takes the stage up to the share `end`, in so many batches where that is known."""
        self.reporter.part(end, batches)

    @property
    def places(self) -> int:
        """How many pieces have room at once; to ask starts Ray."""
        return self.cluster.places(resources_of(self.job))

    @property
    def may_grow(self) -> bool:
        """Whether there may be room for more, later."""
        return self.cluster.elastic

    def run(
        self, pieces: Sequence[Piece], what: str = "", unit: str = "pieces", *, exclusive: bool = False
    ) -> list[Record]:
        """Runs the missing pieces on the workers and returns every record, in the order given.

        Args:
            pieces: the batch.
            what: what it is for, as people are told: `true KL of 4 candidates`.
            unit: what its pieces are called: `shards`.
            exclusive: one piece at a time, with nothing beside it on its node.
        """
        # What this stage has run by itself is collected without a word: it was told when it was done.
        news = not all(piece.key in self.records for piece in pieces)
        if news:
            self.reporter.batch_started(what, unit)
        records = self._records(self.workspace.store, pieces, tell=news, exclusive=exclusive)
        self.records |= {record.key: record for record in records}
        return records

    def run_scratch(self, pieces: Sequence[Piece], what: str, unit: str) -> None:
        """Runs pieces whose only product is on scratch; their records go with it. `what` and `unit` as in `run`."""
        if not pieces:
            return
        self.reporter.batch_started(what, unit)
        folder = self.scratch / f"advance-{uuid.uuid4().hex}"
        try:
            records = self._records(Store(str(folder)), pieces, tell=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.scratch_peak_bytes = max(self.scratch_peak_bytes, *(record.peak_bytes for record in records))

    def ask(self, piece: Piece, *, exclusive: bool = False) -> Record:
        """Runs a piece that only says what a worker finds, without a word; nothing of it is kept."""
        with tempfile.TemporaryDirectory(dir=self._made_scratch(), prefix="ask-") as folder:
            (record,) = self._records(Store(folder), [piece], tell=False, exclusive=exclusive)
        return record

    def _records(self, store: Store, pieces: Sequence[Piece], *, tell: bool, exclusive: bool = False) -> list[Record]:
        """Every piece's record, in the order given, after those that are missing have run on the workers."""
        return run_pieces(
            store,
            pieces,
            self.cluster,
            on_event=self._tell if tell else None,
            on_cost=self._spend,
            deadline_seconds=self.job.cluster.patience,
            exclusive=exclusive,
        )

    def _made_scratch(self) -> Path:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self.scratch

    def forget_rounded(self) -> None:
        """Frees what workers of this machine have kept of rounded weights."""
        shutil.rmtree(self.cluster.scratch / FOLDER, ignore_errors=True)

    def best(self, best: Best) -> None:
        """Tells of the best architecture so far."""
        self.reporter.found(best.sentence())
        self.on_best(best)

    def _spend(self, cost: Cost) -> None:
        self.spent += cost
        self.on_spent()

    def _tell(self, event: PieceEvent) -> None:
        self.reporter.piece_event(event)
        if event.numbers:
            self.on_numbers(event)


class SmallSearch(Search):
    """A search whose few pieces take less time than workers need to start: they run in this process."""

    @property
    def places(self) -> int:
        """This process."""
        return 1

    @property
    def may_grow(self) -> bool:
        """It is one process, and stays so."""
        return False

    def _records(self, store: Store, pieces: Sequence[Piece], *, tell: bool, exclusive: bool = False) -> list[Record]:
        return run_pieces_here(store, pieces, self.scratch / "here")


def cluster_settings(job: Job, workspace: Workspace) -> ClusterSettings:
    """How a job reaches its workers, and what each of them books."""
    return ClusterSettings(
        workers=job.cluster.max_workers,
        share=resources_of(job),
        address=job.cluster.address,
        scratch=scratch_of_job(job, workspace) / "local",
    )


def scratch_of_job(job: Job, workspace: Workspace) -> Path:
    """`cluster.scratch`, relative to the job file, or the workspace's own folder."""
    return workspace.scratch(Path(job.resolve(job.cluster.scratch)) if job.cluster.scratch else None)


def target_of(job: Job, parent: Described) -> Target:
    """Where a job's engine runs, with `auto` resolved."""
    hardware = job.hardware
    return Target(
        hardware.device,
        compute_dtype(job, parent),
        format_of(hardware.engine, hardware.format, parent.shape),
        job.python,
        kv_format_of(hardware),
    )


def compute_dtype(job: Job, parent: Described) -> str:
    """float32 on CPUs, whose bfloat16 is slow and whose float16 is incomplete; the parent's own type elsewhere."""
    if job.hardware.dtype != "auto":
        return job.hardware.dtype
    return "float32" if job.hardware.device == "cpu" else parent.shape.dtype
