"""The connection to Ray: a quiet local one of our own, or a running cluster; started only when a piece must run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from inlay.cluster.capacity import Amounts, Growth, crowded, misfit, read_growth, room
from inlay.cluster.errors import ConnectError
from inlay.cluster.http import HttpError, ray_authorization, request_json
from inlay.cluster.pieces import Resources

_MIB = 1 << 20
# Nothing is reported anywhere, and a worker's devices stay visible to pieces that book none of them.
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
# Ray has no other switch for it: without clusters, as on desktops, every port of its processes is on the loopback.
LOOPBACK_ONLY = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# A head may be silent for so long before its cluster counts as lost; after twice that Ray ends the process itself.
LOST_SECONDS = 30.0
_LOOK_SECONDS = 0.5
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ClusterSettings:
    """How pieces reach their workers."""

    workers: int | None = None
    """Pieces at once at most, at least 1; None is as many shares as this process may use (or the cluster holds)."""
    share: Resources = field(default_factory=Resources)
    """What one worker books."""
    address: str | None = None
    """None starts a Ray of our own and looks for no other; `auto` takes RAY_ADDRESS or the cluster of this machine."""
    object_store_bytes: int = 100 * _MIB
    """Shared memory of a Ray of our own, at least 80 MiB; pieces send small arguments only."""
    scratch: Path | None = None
    """Folder for files that may be lost; None is a folder of our own under the system's temporary one."""
    memory_limit_bytes: int | None = None
    """Address space that a worker may use while it runs a piece; None sets no limit."""
    environment: dict[str, str] = field(default_factory=dict)
    """More environment variables for the workers."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"`workers` must be at least 1, not {self.workers}")
        if self.object_store_bytes < 80 * _MIB:
            raise ValueError(f"`object_store_bytes` must be at least {80 * _MIB}, not {self.object_store_bytes}")


class Cluster:
    """A handle on Ray: free until `start`, which the first piece that must run calls."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.started = False
        self.lost = False
        """Whether the head has been silent for so long that Ray is not to be asked anything any more."""
        self._silent_since: float | None = None
        self._gcs = self._dashboard = ""
        self._session: Path | None = None
        self._variables: dict[str, str | None] = {}
        self._sandbox = Path(tempfile.mkdtemp(prefix="inlay-"))

    @property
    def workers(self) -> int:
        """Pieces at once: as many shares as there is room for, within the limit of the settings."""
        if self.settings.address is None:
            return self.settings.workers or max(int(usable_cpus() / self.settings.share.cpus), 1)
        self.start()
        found = max(room([node["Resources"] for node in self.nodes()], self.settings.share), 1)
        return min(found, self.settings.workers or found)

    @property
    def elastic(self) -> bool:
        """Whether nodes may still come, so that a piece that fits nowhere waits."""
        return self.settings.address is not None

    @property
    def window(self) -> int:
        """Pieces to send at once: where nodes may come, more than fit, which makes an autoscaler add some."""
        if not self.elastic:
            return self.workers
        return self.settings.workers or 2 * self.workers

    @property
    def scratch(self) -> Path:
        """The folder for files that may be lost."""
        return self.settings.scratch or self._sandbox / "scratch"

    def start(self) -> None:
        """Start or reach Ray, once; raises ConnectError with the reason and what to do."""
        if self.started:
            return
        self._set_environment()
        protect_token()
        import ray

        options: dict[str, Any] = {"address": self.settings.address}
        if self.settings.address is None:
            options = {
                "address": "local",
                "num_cpus": math.ceil(self.workers * self.settings.share.cpus),
                "object_store_memory": self.settings.object_store_bytes,
                "include_dashboard": False,
            }
        package = self._sandbox / "package"
        package.mkdir(exist_ok=True)
        options |= {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "namespace": "inlay",
            # An empty working folder: else Ray puts this process's folder first on the path of every worker.
            "runtime_env": {"working_dir": str(package), "env_vars": _WORKER_ENVIRONMENT | self.settings.environment},
        }
        try:
            if self.settings.address is not None:
                _check_reachable(self.settings.address)
            with _on_the_loopback() if self.settings.address is None else contextlib.nullcontext():
                self._dashboard = _init_patiently(ray, options)
        except Exception as error:  # Ray raises its own, builtin ones, and bare Exception for a slow start
            raise ConnectError(_refusal(self.settings.address, error)) from error
        _silence(ray)
        self._session = _session_folder(ray)
        self._gcs = ray.get_runtime_context().gcs_address
        self.started = True

    def answers(self) -> bool:
        """Tell whether the head of a running cluster is there; raises ConnectError when it was silent for too long.

        Ray waits for a minute inside the calls that need the head, and then ends the process without a word to it.
        """
        if self.settings.address is None:
            return True
        try:
            _connect(self._gcs)
        except OSError:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since < LOST_SECONDS:
                return False
            self.lost = True
            raise self._loss() from None
        self._silent_since = None
        return True

    def ask(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return what a call of Ray's returns; raises ConnectError as `answers` does.

        All that the driver asks of a running cluster goes through here. The call is made in a thread of its own, which
        is left behind when the head is lost: nothing else ends such a call before Ray ends the process.
        """
        if self.settings.address is None:
            return call(*args, **options)
        if self.lost:
            raise self._loss()
        future: Future[T] = Future()
        threading.Thread(target=_fulfil, args=(future, partial(call, *args, **options)), daemon=True).start()
        while not wait([future], timeout=_LOOK_SECONDS).done:
            self.answers()
        if future.exception() is not None:
            time.sleep(_LOOK_SECONDS)  # what ran on the head's machine does not end at the very same moment
            while not self.answers():
                time.sleep(_LOOK_SECONDS)
        return future.result()

    def nodes(self) -> list[dict[str, Any]]:
        """Return Ray's description of every node that is alive; raises ConnectError as `answers` does."""
        return self.ask(live_nodes)

    def handed_over(self, task_id: str) -> float | None:
        """Return the time at which Ray gave a task to a worker; raises as `nodes` does.

        None while the task is queued, and where no dashboard keeps a record of tasks.
        """
        return self.ask(_read_hand_over, self._dashboard, task_id) if self._dashboard else None

    def growth(self) -> Growth | None:
        """Return what the cluster's autoscaler says, None where there is none; raises as `nodes` does."""
        return self.ask(_read_growth)

    def preload(self, *modules: str) -> None:
        """Have every worker import these modules of ours in the background, while this process prepares the pieces."""
        import ray

        self.start()
        task = ray.remote(_import_modules).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
        for _ in range(self.workers):
            self.ask(task.remote, modules)

    def check_share(self, patience_seconds: float = 30.0) -> None:
        """Raise ValueError when no node can ever hold a worker; nodes that are just starting are given the patience.

        A cluster that can grow is waited for by the pieces themselves.
        """
        self._check_nodes(lambda nodes: misfit(nodes, self.settings.share), patience_seconds)

    def check_together(self, count: int, patience_seconds: float = 30.0) -> None:
        """Raise ValueError when `count` workers can never run at once; patience and growth are as for `check_share`."""
        self._check_nodes(lambda nodes: crowded(nodes, self.settings.share, count), patience_seconds)

    def _check_nodes(self, problem: Callable[[list[Amounts]], str | None], patience_seconds: float) -> None:
        self.start()
        deadline = time.monotonic() + (patience_seconds if self.elastic else 0)
        while (reason := problem([node["Resources"] for node in self.nodes()])) and not self.growth():
            if time.monotonic() > deadline:
                raise ValueError(reason)
            time.sleep(1)

    def close(self) -> None:
        """End our Ray, or leave the cluster; files of ours that may be lost are removed."""
        if self.started:
            import ray

            if not self.lost and self._is_there():
                ray.shutdown()
            self.started = False
            if self.settings.address is None and self._session is not None:
                shutil.rmtree(self._session, ignore_errors=True)
        self._restore_environment()
        shutil.rmtree(self._sandbox, ignore_errors=True)

    def _set_environment(self) -> None:
        """Set what Ray reads when it starts, where it is not set; with the mode that Ray sets itself it is undone."""
        wanted = _RAY_ENVIRONMENT | (dict([LOOPBACK_ONLY]) if self.settings.address is None else {})
        for name in (*wanted, "RAY_AUTH_MODE"):
            self._variables.setdefault(name, os.environ.get(name))
        for name, value in wanted.items():
            os.environ.setdefault(name, value)

    def _restore_environment(self) -> None:
        for name, value in self._variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._variables = {}

    def _is_there(self) -> bool:
        with contextlib.suppress(ConnectError):
            return self.answers()
        return False

    def _loss(self) -> ConnectError:
        return ConnectError(f"the Ray cluster at {self._gcs} was lost: its head does not answer")


@contextlib.contextmanager
def connect(settings: ClusterSettings | None = None) -> Iterator[Cluster]:
    """Give a cluster handle and end what it started on the way out, also after SIGTERM.

    After a `kill -9` of this process, or of its group, Linux ends the Ray that it started with it. Ray ties itself to
    the thread that starts it, so start it from a thread that lives as long as the pieces.
    """
    cluster = Cluster(settings or ClusterSettings())
    try:
        with _terminate_politely():
            yield cluster
    finally:
        cluster.close()


def live_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of every node that is alive; for workers, the driver asks its `Cluster`."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def check_machine(settings: ClusterSettings) -> None:
    """Raise ValueError when workers are to be on this machine and it has too few CPUs for one; starts nothing."""
    cpus = Resources(cpus=settings.share.cpus)
    reason = misfit([{"CPU": usable_cpus()}], cpus) if settings.address is None else None
    if reason is not None:
        raise ValueError(reason)


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def protect_token() -> None:
    """See that the token of this account's Ray clusters exists and that nobody else may read it.

    Ray would write it itself, readable by all. Where the home folder cannot be written, the token lives as long as
    this process.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError:
        if not path.exists():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _terminate_politely() -> Iterator[None]:
    """Turn SIGTERM into SystemExit while Ray may be up, so that it is ended; the earlier handler comes back
    afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def _read_growth() -> Growth | None:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    return read_growth(_internal_kv_get(DEBUG_AUTOSCALING_STATUS))


def _read_hand_over(dashboard: str, task_id: str) -> float | None:
    # Not by `ray.util.state`: it asks the cluster that an environment variable or a file of this machine names.
    path = f"/api/v0/tasks?detail=true&limit=1&filter_keys=task_id&filter_predicates=%3D&filter_values={task_id}"
    try:
        answer = request_json("GET", f"http://{dashboard}{path}", authorization=ray_authorization())
        events = [event for task in answer["data"]["result"]["result"] for event in task["events"] or []]
        handed = [event["created_ms"] / 1000 for event in events if event["state"] == "SUBMITTED_TO_WORKER"]
    except (HttpError, KeyError, TypeError):
        return None  # a dashboard that does not answer; it is asked again
    return max(handed, default=None)


def _import_modules(modules: tuple[str, ...]) -> None:
    import importlib

    for name in modules:
        importlib.import_module(name)


@contextlib.contextmanager
def _on_the_loopback() -> Iterator[None]:
    """Have Ray heed LOOPBACK_ONLY in this process too, which may have imported it, and thereby read it, long before."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _init_patiently(ray: Any, options: dict[str, Any]) -> str:
    """Start or reach Ray, and return the `host:port` of its dashboard, empty where there is none.

    A machine so busy that the 30 s that Ray gives itself were not enough gets more tries. Ray puts a handler of its own
    on SIGTERM, whose exit code says success to some: ours stays.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    tries_left = 2
    try:
        while True:
            try:
                return ray.init(**options).dashboard_url or ""
            except Exception as error:
                if tries_left == 0 or "timed out during startup" not in str(error):
                    raise
                tries_left -= 1
                ray.shutdown()
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Raise ConnectionError when nothing listens at `host:port`; Ray itself would say so after minutes only."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    _, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "://" not in address:
        try:
            _connect(address)
        except OSError as error:
            raise ConnectionError(f"nothing answers at {address} ({error.strerror or error})") from error


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _silence(ray: Any) -> None:
    """End the thread that prints lost nodes, with their logs, on this program's stdout; a fan-out tells them in words.

    Ray has no setting for it; this is what it does itself when it disconnects, and doing so again is harmless.
    """
    worker = ray._private.worker.global_worker
    if hasattr(worker, "threads_stopped") and hasattr(worker, "gcs_error_subscriber"):
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()


def _session_folder(ray: Any) -> Path:
    return Path(ray._private.worker._global_node.get_session_dir_path())


def _refusal(address: str | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if address is None:
        return f"Ray could not be started on this machine: {reason}"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return (
            f"the Ray cluster at {address} did not answer: {reason}; if it asks for a token, set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    return f"the Ray cluster at {address} did not answer: {reason}"
