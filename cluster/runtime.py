"""The connection to Ray: a quiet local one of our own, or a running cluster; started only when a piece must run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.cluster.capacity import Amounts, Growth, crowded, growth_of, misfit, read_growth, room, usable_cpus, words
from inlay.cluster.dashboard import read_hand_over
from inlay.cluster.errors import ConnectError
from inlay.cluster.head import Head, check_reachable
from inlay.cluster.pieces import Resources
from inlay.cluster.ray_environment import RayEnvironment, worker_variables
from inlay.cluster.ray_private import (
    autoscaler_status,
    on_the_loopback,
    second_autoscaler,
    session_folder,
    silence,
    without_monitors,
)
from inlay.cluster.ray_token import protect_token
from inlay.cluster.signals import handler_kept, terminated_politely
from inlay.cluster.staying import StayingWorkers
from inlay.cluster.tasks import RayTasks, Tasks

_MIB = 1 << 20


@dataclass(frozen=True)
class ClusterSettings:
    """How pieces reach their workers."""

    workers: int | None = None
    """Pieces at once at most, at least 1; None is as many as this machine (or the cluster) has room for."""
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
        self.head = Head(None)
        """Of the running cluster, once started: all that is asked of it goes through `head.ask`."""
        self.dashboard = ""
        """`host:port` of the running cluster's, once started; empty where it has none."""
        self._gcs = ""
        self._staying = StayingWorkers(self.head)
        self._session: Path | None = None
        self._environment = RayEnvironment()
        self._sandbox = Path(tempfile.mkdtemp(prefix="inlay-"))

    @property
    def elastic(self) -> bool:
        """Whether nodes may still come, so that a piece that fits nowhere waits."""
        return self.settings.address is not None

    @property
    def scratch(self) -> Path:
        """The folder for files that may be lost."""
        return self.settings.scratch or self._sandbox / "scratch"

    def tasks(self) -> Tasks:
        """What runs the pieces of a fan-out, once started."""
        return RayTasks(self.head, self._staying)

    def start(self) -> None:
        """Start or reach Ray, once; raises ConnectError with the reason and what to do."""
        if self.started:
            return
        self._environment.set(local=not self.elastic)
        protect_token()
        import ray

        options: dict[str, Any] = {"address": self.settings.address}
        if not self.elastic:
            options = {
                "address": "local",
                "num_cpus": _own_cpus(self.settings),
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
            "runtime_env": {
                "working_dir": str(package),
                "env_vars": worker_variables(self.settings.environment),
                "worker_process_setup_hook": "inlay.cluster.worker.take_own_session",
            },
        }
        try:
            if self.settings.address is not None:
                check_reachable(self.settings.address)
            with contextlib.ExitStack() as stack:
                if not self.elastic:
                    stack.enter_context(on_the_loopback())
                    stack.enter_context(without_monitors())
                self.dashboard = _init_patiently(ray, options)
        except Exception as error:  # Ray raises its own, builtin ones, and bare Exception for a slow start
            raise ConnectError(_refusal(self.settings.address, error)) from error
        silence()
        self._session = session_folder()
        if self.elastic:
            self._gcs = str(ray.get_runtime_context().gcs_address)
            self.head = Head(self._gcs)
        self._staying = StayingWorkers(self.head)
        self.started = True

    def places(self, wish: Resources) -> int:
        """Return how many pieces that ask for `wish` have room at once, at least 1; starts Ray.

        Within the limit of the settings. A piece that books nothing counts as one that books a worker's share.
        """
        self.start()
        counted = wish if words(wish) else self.settings.share
        found = max(room(self.amounts(), counted), 1)
        return min(found, self.settings.workers or found)

    def nodes(self) -> list[dict[str, Any]]:
        """Return Ray's description of every node that is alive; raises ConnectError as the head's `ask` does."""
        return self.head.ask(live_nodes)

    def amounts(self) -> list[Amounts]:
        """Return what every live node has in all, by Ray's names; raises as `nodes` does."""
        return [node["Resources"] for node in self.nodes()]

    def handed_over(self, task_id: str) -> float | None:
        """Return the time at which Ray gave a task to a worker; raises as `nodes` does.

        None while the task is queued, and where no dashboard keeps a record of tasks.
        """
        return self.head.ask(read_hand_over, self.dashboard, task_id) if self.dashboard else None

    def growth(self) -> Growth | None:
        """Return what the cluster's autoscaler says, None where there is none; raises as `nodes` does."""
        if not self.elastic:
            return None
        status = self.head.ask(autoscaler_status)
        return read_growth(status) if status else growth_of(self.head.ask(second_autoscaler, self._gcs))

    def preload(self, *modules: str) -> None:
        """Have every worker import these modules of ours in the background, while this process prepares the pieces.

        Each books a worker's CPUs, so that nothing is imported beside a piece that is measured, and nothing is asked of
        nodes that are not there yet.
        """
        import ray

        self.start()
        cpus = self.settings.share.cpus
        task = ray.remote(_import_modules).options(num_cpus=cpus, max_retries=0, scheduling_strategy="SPREAD")
        if room(self.amounts(), self.settings.share):
            for _ in range(self.places(self.settings.share)):
                self.head.ask(task.remote, modules)

    def check_share(self, patience_seconds: float = 30.0) -> None:
        """Raise ValueError when no node can ever hold a worker; nodes that are just starting are given the patience.

        A cluster that can grow is waited for by the pieces themselves.
        """
        self._check_nodes(lambda nodes: misfit(nodes, self.settings.share), patience_seconds)

    def check_together(self, count: int, patience_seconds: float = 30.0) -> None:
        """Raise ValueError when `count` workers can never run at once; patience and growth are as for `check_share`."""
        self._check_nodes(lambda nodes: crowded(nodes, self.settings.share, count), patience_seconds)

    def close(self) -> None:
        """End our Ray, or leave the cluster; files of ours that may be lost are removed."""
        if self.started:
            import ray

            self._staying.close()
            if not self.head.lost and self._is_there():
                ray.shutdown()
            self.started = False
            if not self.elastic and self._session is not None:
                shutil.rmtree(self._session, ignore_errors=True)
        self._environment.restore()
        shutil.rmtree(self._sandbox, ignore_errors=True)

    def _check_nodes(self, problem: Callable[[list[Amounts]], str | None], patience_seconds: float) -> None:
        self.start()
        deadline = time.monotonic() + (patience_seconds if self.elastic else 0)
        while (reason := problem(self.amounts())) and not self.growth():
            if time.monotonic() > deadline:
                raise ValueError(reason)
            time.sleep(1)

    def _is_there(self) -> bool:
        with contextlib.suppress(ConnectError):
            return self.head.answers()
        return False


@contextlib.contextmanager
def connect(settings: ClusterSettings | None = None) -> Iterator[Cluster]:
    """Give a cluster handle and end what it started on the way out, also after SIGTERM.

    After a `kill -9` of this process, or of its group, Linux ends the Ray that it started with it. Ray ties itself to
    the thread that starts it, so start it from a thread that lives as long as the pieces.
    """
    cluster = Cluster(settings or ClusterSettings())
    try:
        with terminated_politely():
            yield cluster
    finally:
        cluster.close()


def live_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of every node that is alive; for workers, the driver asks its `Cluster`."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def check_machine(settings: ClusterSettings, together: int = 1) -> None:
    """Raise ValueError when workers are to be on this machine and it has too few CPUs for them; starts nothing.

    Args:
        settings: of the cluster to be.
        together: so many workers are to run at once.
    """
    if settings.address is not None:
        return
    cpus = Resources(cpus=settings.share.cpus)
    if reason := misfit([{"CPU": usable_cpus()}], cpus):
        raise ValueError(reason)
    if reason := crowded([{"CPU": _own_cpus(settings)}], cpus, together):
        raise ValueError(reason)


def _own_cpus(settings: ClusterSettings) -> int:
    """Return the CPUs of a Ray of our own: those that the workers asked for book, or all that there are."""
    return usable_cpus() if settings.workers is None else math.ceil(settings.workers * settings.share.cpus)


def _import_modules(modules: tuple[str, ...]) -> None:
    import importlib

    for name in modules:
        importlib.import_module(name)


def _init_patiently(ray: Any, options: dict[str, Any]) -> str:
    """Start or reach Ray, and return the `host:port` of its dashboard, empty where there is none.

    A machine so busy that the 30 s that Ray gives itself were not enough gets more tries.
    """
    tries_left = 2
    with handler_kept():
        while True:
            try:
                return ray.init(**options).dashboard_url or ""
            except Exception as error:
                if tries_left == 0 or "timed out during startup" not in str(error):
                    raise
                tries_left -= 1
                ray.shutdown()


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
