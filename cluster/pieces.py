"""Pieces, the unit of work of every stage: idempotent, keyed by all that they depend on, committed once by a small
record.

`fanout.run_pieces` runs them on Ray; `worker.execute` is what happens inside a worker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from inlay.cluster.errors import StoreError
from inlay.cluster.store import Store, digest_of, json_bytes

RECORD_SCHEMA = 1


GPU_TYPE = "accelerator_type:"
"""What Ray's name for a kind of accelerator begins with."""


@dataclass(frozen=True)
class Resources:
    """What one piece holds while it runs."""

    cpus: float = 1.0
    """CPUs in Ray's books; 0 for a piece that only waits for what others compute."""
    gpus: float = 0.0
    """GPUs in Ray's books; fractions share one."""
    memory_bytes: int = 0
    """Memory in Ray's books (scheduling only, not a limit); 0 books none."""
    threads: int = 1
    """Threads of OpenMP, MKL and torch inside the worker, at least 1."""
    gpu_type: str = ""
    """The kind of GPU that its node must have, by Ray's name for it, such as `H100`; empty: any."""

    @property
    def custom(self) -> dict[str, float]:
        """What it asks for beside CPUs, GPUs and memory, by Ray's names; a node with GPUs has 1 of their kind."""
        return {f"{GPU_TYPE}{self.gpu_type}": 0.001} if self.gpu_type else {}

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0 or self.memory_bytes < 0 or self.threads < 1:
            raise ValueError(f"a piece needs cpus >= 0, gpus >= 0, memory_bytes >= 0 and threads >= 1, not {self}")


class Progress(Protocol):
    """How a piece tells the driver how far it is."""

    def __call__(self, fraction: float, numbers: Mapping[str, float] | None = None, /) -> None:
        """Report the fraction done, 0 to 1, and a few numbers to show meanwhile, such as a step and its losses.

        Cheap enough to call every step: at most two reports a second are kept, and the one of fraction 1.
        """

    def waits(self, what: str, /) -> None:
        """Report that the piece does nothing but wait for `what`, such as `room for 2 ranks`, until its next report.

        It counts as not begun until then, and has no deadline.
        """

    def called_off(self) -> bool:
        """Whether the driver has called the piece off: it may then end early, with what it has.

        Cheap enough to call every step: the driver's word is looked for at most twice a second.
        """


@dataclass(frozen=True)
class PieceContext:
    """What a piece's function is given beside its arguments."""

    seed: int
    """The piece's own seed, below 2**63; the same on every attempt."""
    store: Store
    """The store of the workspace, to read blobs from."""
    scratch: Path
    """A local folder for files that may be lost, shared by the workers of one machine."""
    threads: int
    """Threads that were set before the function was called."""
    attempt: int
    """1 for the first attempt."""
    memory_retries: int
    """How many earlier attempts ended for want of memory: a function may halve its micro-batch that often."""
    progress: Progress
    """Report how far it is."""


@dataclass(frozen=True)
class PieceOutput:
    """What a piece's function returns: small JSON values, and blobs (bytes, or tensors that become safetensors)."""

    values: Mapping[str, Any] = field(default_factory=dict)
    blobs: Mapping[str, bytes | Mapping[str, Any]] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    """Digests of blobs that the function has put into the store itself."""
    failure: str | None = None
    """A reason makes the record's state "failed": a committed answer, not an error to be tried again."""
    peak_bytes: int = 0
    """Peak resident memory of the largest other process that worked for the piece."""


PieceFunction = Callable[[dict[str, Any], PieceContext], PieceOutput]


@dataclass(frozen=True)
class Piece:
    """One unit of work: a module-level function and the JSON or picklable arguments it is called with in a worker."""

    key: str
    """From `piece_key`; names the record."""
    label: str
    """What people read, such as `layer 3`; unique within its stage."""
    stage: str
    version: int
    """Of the stage's code: raised when its results change."""
    function: PieceFunction
    arguments: dict[str, Any]
    resources: Resources = Resources()
    seed: int = 0
    ranks: tuple[int, Resources] | None = None
    """What it has others hold for it while it books nothing itself: so many times these resources."""

    @property
    def record_key(self) -> str:
        return f"records/{self.stage}/{self.key}.json"


@dataclass(frozen=True)
class Record:
    """The committed result of a piece; `seconds`, `peak_bytes`, `host`, `attempts` and `environment` may differ
    between runs."""

    key: str
    label: str
    stage: str
    version: int
    seed: int
    state: Literal["done", "failed"]
    reason: str
    blobs: Mapping[str, str]
    """Blob digests by name."""
    values: Mapping[str, Any]
    attempts: int = 1
    seconds: float = 0.0
    peak_bytes: int = 0
    """Peak resident memory of the worker process while the piece ran, libraries included; of the largest, where
    several processes worked for it."""
    host: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and threads of what ran the piece."""

    def identity(self) -> dict[str, Any]:
        """Return what must be equal in every run of the same job, whatever the workers, kills and hosts."""
        names = ("key", "label", "stage", "version", "seed", "state", "reason")
        return {name: getattr(self, name) for name in names} | {"blobs": dict(self.blobs), "values": dict(self.values)}

    def to_bytes(self) -> bytes:
        """Return the record as JSON with its schema version; raises ValueError for values that JSON cannot hold."""
        volatile = ("attempts", "seconds", "peak_bytes", "host")
        rest = {name: getattr(self, name) for name in volatile} | {"environment": dict(self.environment)}
        return json_bytes(self.identity() | rest | {"schema": RECORD_SCHEMA})


def read_record(store: Store, key: str) -> Record:
    """Return the record under the store key `key`; raises StoreError when it is absent or damaged."""
    return parse_record(store.get(key), f"{store.url}/{key}")


def parse_record(content: bytes, name: str) -> Record:
    """Return the record that `Record.to_bytes` wrote; raises StoreError naming `name`."""
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or value.pop("schema", None) != RECORD_SCHEMA:
            raise StoreError(f"{name} is not a record of schema {RECORD_SCHEMA}; this version of inlay cannot read it")
        return Record(**value)
    except (ValueError, TypeError) as error:
        raise StoreError(f"{name} is a damaged record ({error}); delete it and give the same command again") from error


def piece_key(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Any] | list[Any], label: str
) -> str:
    """Return the key of a piece: the sha256 of all that its result depends on (stage, version, settings read, inputs,
    label)."""
    return digest_of({"stage": stage, "version": version, "settings": dict(settings), "inputs": inputs, "label": label})


def piece_seed(job_seed: int, label: str) -> int:
    """Return the seed of a piece, below 2**63, from the job's seed and the piece's label."""
    return int.from_bytes(hashlib.sha256(f"{job_seed}:{label}".encode()).digest()[:8], "big") >> 1
