"""What happens inside a Ray worker: threads and limits are set, the function runs, blobs and then the record are
written."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import os
import platform
import resource
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inlay.cluster.errors import StoreError
from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, Progress, Record, parse_record, read_record
from inlay.cluster.ray_private import delete_value, get_values, put_value
from inlay.cluster.store import Store

PROGRESS_NAMESPACE = "inlay.progress"
CALLED_OFF = "/called_off"
"""What follows a piece's progress key in the name under which the driver says that the piece is called off."""
_PROGRESS_SECONDS = 0.5
# Of plain RuntimeErrors, in lower case: torch's allocator on CPUs, CUDA and NCCL calls outside torch's allocator, and
# cuBLAS, cuDNN and cuSOLVER, which cannot make room for a handle or a workspace.
_MEMORY_TEXTS = (
    "can't allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
)


@dataclass(frozen=True)
class Order:
    """A piece on its way to a worker, with all that is not part of its identity."""

    piece: Piece
    store: Store
    scratch: Path
    progress_key: str
    attempt: int
    memory_retries: int
    memory_limit_bytes: int | None


@dataclass(frozen=True)
class Outcome:
    """What came back: a record, or what the function raised as plain text (foreign exceptions do not always
    unpickle)."""

    record: Record | None
    kind: str = ""
    message: str = ""
    details: str = ""
    out_of_memory: bool = False
    seconds: float = 0.0
    """Of the attempt, as its worker has it."""
    told: Mapping[str, Any] | None = None
    """Its last report, as the driver would find it where it looks for them."""


def take_own_session() -> None:
    """Called by Ray in every worker that starts: makes it a session of its own.

    Linux shares the processors of a desktop among sessions first (autogroups): all workers in the driver's session get
    as much together as one busy program of the user's.
    """
    with contextlib.suppress(OSError):  # its parent is in another session: then it has one of its own already
        os.setpgid(0, os.getpgid(os.getppid()))  # Ray made it the leader of a group, and these may not
        os.setsid()  # leads a group of the same number, which Ray knows it by


def execute(order: Order) -> Outcome:
    """Run one piece in a worker and commit it, telling the driver how far it is."""
    begun = time.perf_counter()
    progress = _Progress(order.progress_key)
    progress.start()
    outcome = perform(order, progress)
    return replace(outcome, seconds=time.perf_counter() - begun, told=progress.end())


def perform(order: Order, progress: Progress) -> Outcome:
    """Run one piece and commit it; a piece that is committed already is only read, a function that raises commits
    nothing."""
    piece, store = order.piece, order.store
    if store.exists(piece.record_key):
        return Outcome(read_record(store, piece.record_key))
    _set_threads(piece.resources.threads)
    try:
        order.scratch.mkdir(parents=True, exist_ok=True)
        context = PieceContext(
            seed=piece.seed,
            store=store,
            scratch=order.scratch,
            threads=piece.resources.threads,
            attempt=order.attempt,
            memory_retries=order.memory_retries,
            progress=progress,
        )
        started = time.perf_counter()
        with _address_space(order.memory_limit_bytes):
            reset_peak()
            output = piece.function(piece.arguments, context)
            blobs = {name: _commit_blob(store, content) for name, content in sorted(output.blobs.items())}
            blobs |= output.stored
        record = _record(order, output, blobs, time.perf_counter() - started)
        content = record.to_bytes()
        if not store.put_if_absent(piece.record_key, content):
            content = store.get(piece.record_key)  # another writer of the same piece was first
        return Outcome(parse_record(content, piece.record_key))
    except Exception as error:
        return Outcome(None, type(error).__name__, str(error), traceback.format_exc(), is_out_of_memory(error))


def execute_on_gpu(order: Order) -> Outcome:
    """Do the same under a name of its own: Ray knows by the function whether a worker ends after one call."""
    return execute(order)


class StayingWorker:
    """Runs piece after piece in one process, as an actor of Ray's."""

    def execute(self, order: Order) -> Outcome:
        """Run one piece as `execute` does, and give back what its GPU holds for no one."""
        try:
            return execute(order)
        finally:
            gc.collect()
            if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def _record(order: Order, output: PieceOutput, blobs: dict[str, str], seconds: float) -> Record:
    piece = order.piece
    return Record(
        key=piece.key,
        label=piece.label,
        stage=piece.stage,
        version=piece.version,
        seed=piece.seed,
        state="done" if output.failure is None else "failed",
        reason=output.failure or "",
        blobs=blobs,
        values=dict(output.values),
        attempts=order.attempt,
        seconds=round(seconds, 4),
        peak_bytes=max(peak_bytes(), output.peak_bytes),
        host=socket.gethostname(),
        environment=_environment() | ({"memory_retries": str(order.memory_retries)} if order.memory_retries else {}),
    )


def _commit_blob(store: Store, content: bytes | Mapping[str, Any]) -> str:
    if isinstance(content, bytes):
        return store.put_blob(content)
    from safetensors.torch import save_file  # imports torch: only where a piece made tensors

    path = store.temporary_path()
    try:
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
        return store.take_blob(path)
    except Exception as error:
        # safetensors reports a full disk as its own error, with the reason only in the text.
        if "os error 28" in str(error) or "os error 27" in str(error):
            size = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
            raise StoreError(
                f"{size} bytes could not be written to {store.url}/blobs: no space is left there; "
                "what is finished stays: free some space and give the same command again"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _set_threads(threads: int) -> None:
    """Set the thread counts of this process: by environment for what is not loaded yet, in torch where it is.

    Ray reuses workers, and torch keeps the count that it started with.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LIBGGUF_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules and hasattr(sys.modules["torch"], "set_num_threads"):
        sys.modules["torch"].set_num_threads(threads)


@contextlib.contextmanager
def _address_space(limit_bytes: int | None) -> Iterator[None]:
    """Hold the address space of this process under `limit_bytes` while a piece runs; allocations above it fail."""
    if limit_bytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def reset_peak() -> None:
    """Start the kernel's peak of resident memory anew (Linux); elsewhere the peak is that of the worker's life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak resident memory of this process since `reset_peak`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the getrusage figure below is what there is
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _environment() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    for name in ("torch", "transformers", "numpy"):
        if name in sys.modules:
            versions[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return versions


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it tells of want of memory: Python's, torch's on either device, or the kernel's refusal to map a file."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_TEXTS))
    )


class _Progress:
    """Writes what a piece reports to Ray's key-value table, at most twice a second, where the driver looks for it.

    The end is written whenever it comes, so that the driver sees the last numbers of a piece however short it is.
    """

    def __init__(self, key: str) -> None:
        import ray

        self._key = key
        self._node = ray.get_runtime_context().get_node_id()
        self._written = -math.inf
        self._asked = -math.inf
        self._called_off = False
        self._told: Mapping[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the time of the last report behind: the clock of another machine says nothing here."""
        return {**self.__dict__, "_written": -math.inf, "_asked": -math.inf}

    def start(self) -> None:
        """Say that the piece left the queue."""
        self._write(0.0)

    def waits(self, what: str, /) -> None:
        self._write(0.0, waits=what)
        self._written = -math.inf  # that the wait is over is told at once

    def called_off(self) -> bool:
        if not self._called_off and time.monotonic() - self._asked >= _PROGRESS_SECONDS:
            self._asked = time.monotonic()
            self._called_off = get_values([self._key + CALLED_OFF], PROGRESS_NAMESPACE) != [None]
        return self._called_off

    def __call__(self, fraction: float, numbers: Mapping[str, float] | None = None, /) -> None:
        if fraction >= 1 or time.monotonic() - self._written >= _PROGRESS_SECONDS:
            self._write(min(max(float(fraction), 0.0), 1.0), numbers)

    def end(self) -> Mapping[str, Any]:
        """Take the last report from where the driver looks for it, and return it: it goes with the outcome."""
        delete_value(self._key, PROGRESS_NAMESPACE)
        return self._told

    def _write(self, fraction: float, numbers: Mapping[str, float] | None = None, waits: str = "") -> None:
        self._written = time.monotonic()
        self._told = {"fraction": fraction, "node": self._node, "numbers": dict(numbers or {}), "waits": waits}
        put_value(self._key, json.dumps(self._told), PROGRESS_NAMESPACE)
