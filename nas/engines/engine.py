"""The contract of an engine: what runs a child for its users, and what a search has to know of it.

An engine is stateless. What it is asked before anything is trained needs neither torch nor the engine itself; what is
asked of it in a worker is given a `Target`, and whatever it starts is gone when the answer is there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from inlay.nas.engines.talk import Talk, Trained
from inlay.nas.engines.timing import Workload
from inlay.nas.families.shape import Entry, Shape
from inlay.nas.modeling.subblock_inlay import Slot, TimedSlot
from inlay.nas.tables.halves import Half, StandIn
from inlay.nas.variants.storage import Storage

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig

Rounds = dict[str, list[tuple[int, int]]]
"""(prefill ns, mean decode step ns) of every round, by model."""


@dataclass(frozen=True)
class Held:
    """What an engine says that it holds for a model in a workload, bytes.

    Args:
        weights_bytes: weights.
        kv_bytes: its cache.
        compute_bytes: what it computes in.
        file_bytes: the file that it opened, without a tokenizer; None where it opens none.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    file_bytes: int | None = None


@dataclass(frozen=True)
class Timed:
    """What models did in turns.

    Args:
        rounds: their times.
        held: what the engine held for each; empty where it does not tell.
    """

    rounds: Rounds
    held: Mapping[str, Held]


@dataclass(frozen=True)
class Target:
    """Where an engine runs.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: what PyTorch computes in.
        format: what matrices are stored in, one of the engine's `formats`.
        python: the interpreter that has the engine; None: this one.
        kv_format: what keys and values are stored in, one of the engine's `kv_formats`; None: the only way it has.
    """

    device: str
    dtype: str
    format: str
    python: str | None = None
    kv_format: str | None = None


@dataclass(frozen=True)
class Skeletons:
    """Small models by which subblocks are timed.

    Args:
        references: models that several subblocks are compared with, by name.
        models: one for each subblock, by its key.
        terms: a subblock's own time, and that of the `ends`, as a sum of times of these models: (weight, name).
        prompt_terms: what is added to that of the prompt alone.
    """

    references: Mapping[str, InlayConfig]
    models: Mapping[str, InlayConfig]
    terms: Mapping[str, Sequence[tuple[float, str]]] = field(default_factory=dict)
    prompt_terms: Mapping[str, Sequence[tuple[float, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoodIn:
    """What stands in for half a layer.

    Args:
        weights_bytes: its tensors.
        cache: what takes as much cache, as an entry of an attention; None: it has none.
        timed: the subblock that takes as long; None: its time is counted with its layer's other half.
    """

    weights_bytes: int
    cache: Entry | None = None
    timed: tuple[Slot, Entry] | None = None


class Engine(ABC):
    """One engine."""

    name: ClassVar[str]
    """As `hardware.engine` has it."""
    formats: ClassVar[tuple[str, ...]]
    """What `hardware.format` may be."""
    subblock_formats: ClassVar[tuple[str, ...]] = ()
    """What single subblocks may be stored in beside it; none where all are stored alike."""
    stores_matrices_apart: ClassVar[bool] = False
    """Whether the matrices of one subblock may be stored in different ones of these."""
    kv_formats: ClassVar[tuple[str, ...]] = ()
    """What `hardware.kv_format` may be, the one that is taken unasked first; none where there is no choice."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Types of device that it runs on."""
    stores_ends_apart: ClassVar[bool] = False
    """Whether embedding and head may be stored in another format than the whole file."""
    has_python: ClassVar[bool] = True
    """Whether it may live in another interpreter."""

    @abstractmethod
    def usual_format(self, shape: Shape) -> str:
        """What `format: auto` stands for."""

    @abstractmethod
    def problem(self, entry: Entry, slot: Slot, shape: Shape, form: str) -> str | None:
        """Why it cannot run this subblock, with the value and what can be run instead, or None."""

    @abstractmethod
    def model_problem(self, shape: Shape, form: str, device: str) -> str | None:
        """Why it cannot run any child of this parent on a device, with the way out, or None."""

    def format_problem(self, own: str, form: str, device: str) -> str | None:
        """Why it cannot compute on a device with one of its `subblock_formats`, `own`, beside what all else is in, with
        the way out, or None."""
        return None

    def cache_problem(self, shape: Shape, kv_format: str) -> str | None:
        """Why it cannot keep the cache of a child of this parent so, with the way out, or None."""
        return None

    @abstractmethod
    def storage(self, form: str, device: str, kv_format: str | None = None) -> Storage:
        """How it keeps a model in a format on a device; `kv_format` as of `Target`, None as what is taken unasked."""

    @abstractmethod
    def describe(self, target: Target) -> dict[str, str]:
        """What times depend on where they are taken: the processor's name and the versions of what computes.

        Raises:
            UserError: the engine is not installed there.
        """

    @abstractmethod
    def skeletons(self, config: InlayConfig, subblocks: Mapping[str, tuple[TimedSlot, Entry]]) -> Skeletons:
        """The models that tell the times of these subblocks, by their keys, and of the ends."""

    def half(self, entry: Entry, slot: Slot, shape: Shape) -> Half | None:
        """Which half of a layer a subblock that is there becomes; None where layers have no halves."""
        return None

    def stand_ins(self, shape: Shape, form: str) -> Mapping[StandIn, StoodIn]:
        """What stands where a layer lacks a half; empty where nothing does."""
        return {}

    def at_end(self, times: Mapping[str, int]) -> dict[str, int]:
        """`prefill_ns` and `decode_ns` of an ffn half in a model's last layer, from those that its skeleton has."""
        return dict(times)

    def untold(self, device: str) -> str | None:
        """Why it does not tell the buffers that it computes in on this device, or None."""
        return f"{self.name} on {device} does not tell its compute buffers"

    def buffers(
        self, models: Mapping[str, InlayConfig], workload: Workload, target: Target, scratch: Path | None = None
    ) -> int | None:
        """Bytes that it computes in, for the model that takes most of them; None where `untold` says why.

        Arguments as `rounds`.
        """
        return None

    def file_bytes(self, config: InlayConfig, form: str, folder: Path | None) -> int | None:
        """Bytes of the file that it runs, before that is written, with the tokenizer of a folder; None where it runs no
        file of its own."""
        return None

    @abstractmethod
    def rounds(
        self,
        models: Mapping[str, InlayConfig],
        workload: Workload,
        target: Target,
        on_round: Callable[[float], None],
        together: bool = True,
        scratch: Path | None = None,
    ) -> Timed:
        """Times of models of these shapes, in turns; the others are judged relative to the first.

        Args:
            models: what is timed; weights are random.
            workload: what a run is.
            target: where.
            on_round: is told which share of the rounds is done.
            together: whether there is memory for all of them at once.
            scratch: a folder for files that may be lost; None: the system's.

        Raises:
            UserError: the engine does not run one of them, died or hangs.
        """

    @abstractmethod
    def talk(
        self, models: Mapping[str, Trained], target: Target, threads: int, kept: Path
    ) -> AbstractContextManager[Talk]:
        """Holds models to continue texts with, until the context ends.

        Args:
            models: by name.
            target: where.
            threads: CPU threads.
            kept: a folder, there or not, for files that can be made again; those of equal models are used again.

        Raises:
            UserError: the engine is not installed there, or does not run one of them.
        """
