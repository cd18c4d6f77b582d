"""A Ray cluster of several nodes on this machine, an MLflow server and a small disk, and the ways to break each.

Every process carries MARK in its environment, so that what is left over is found, and nobody else's is touched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from inlay.cluster.processes import free_port

MARK = "INLAY_FAULTS"
NODES = 2
STAGES = ("advance", "calibrate", "distill", "score", "true_kl", "true_times", "recover", "evaluate")
FILL = """
import sys, time
import numpy, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0, max_retries=0)
def fill(size, seconds):
    held = [ray.put(numpy.ones(1 << 23, numpy.uint8)) for _ in range(size >> 23)]
    time.sleep(seconds)
    return len(held)

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
asked = [fill.options(scheduling_strategy=place).remote(int(sys.argv[2]), 3.0) for place in places]
print("filled", flush=True)
print(sum(ray.get(asked)), flush=True)
"""
STORE_BYTES = 80 << 20
RAYS_OWN = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/autoscaler", "ray/_private")
"""What the commands of Ray's processes begin with, or have in them."""


class Machines:
    """Head without CPUs for pieces, and NODES nodes of one CPU each."""

    def __init__(self) -> None:
        self._cluster: Any = None
        self._nodes: list[Any] = []
        self._added: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def start(self) -> None:
        """A new cluster."""
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": True}

        def start_head() -> Any:
            end_all(ours(RAYS_OWN))  # of a try that was given up
            return Cluster(initialize_head=True, head_node_args=head | {"dashboard_port": free_port(0)})

        self._cluster = patiently(start_head)
        self._nodes, self._added = [], []
        for _ in range(NODES):
            self.add()

    def add(self) -> None:
        """One more node."""
        self._nodes.append(patiently(lambda: self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)))

    def add_ahead(self, variables: dict[str, str]) -> None:
        """One more node, whose processes have these variables, until `take_away_added`."""
        kept = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)  # the node's processes are started from here
        try:
            self._added.append(patiently(lambda: self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)))
        finally:
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def take_away_added(self) -> None:
        """End the nodes of `add_ahead`."""
        for node in self._added:
            self._cluster.remove_node(node, allow_graceful=False)
        self._added.clear()

    def lose_node(self, index: int) -> None:
        """Kill a node with all its processes."""
        self._cluster.remove_node(self._nodes.pop(index % len(self._nodes)), allow_graceful=False)

    def lose_head(self) -> None:
        """Kill the head, and then the rest, which cannot live without it."""
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)
        self.stop()

    def stop(self) -> None:
        """End all nodes."""
        with contextlib.suppress(Exception):  # Ray's helper stumbles over nodes that are dead already
            self._cluster.shutdown()
        end_all(ours(RAYS_OWN))


def patiently(start: Callable[[], Any], tries: int = 4) -> Any:
    """What `start` gives; Ray gives its processes 30 s to start, which a busy machine may exceed."""
    while True:
        tries -= 1
        try:
            return start()
        except Exception as error:  # Ray raises a bare one
            if not tries or "timed out during startup" not in str(error):
                raise


class Growing:
    """A head without CPUs whose cluster grows by Ray's second autoscaler: that of the tests of the cluster room."""

    def __init__(self, folder: Path) -> None:
        place = Path(__file__).parents[1] / "tests" / "cluster" / "conftest.py"
        spec = importlib.util.spec_from_file_location("nodes_of_tests", place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        kind = {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 2}
        self._nodes = module.RayNodes(folder, cpus=0, slots=1, growth={"small": kind}, v2=True)

    @property
    def url(self) -> str:
        return str(self._nodes.url)

    def add(self, cpus: int) -> None:
        """One more node."""
        self._nodes.add(cpus)

    def __enter__(self) -> Growing:
        self._nodes.wait(1)
        return self

    def __exit__(self, *error: object) -> None:
        self._nodes.close()


class Tracker:
    """An MLflow server that may be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; the caller does not wait, as a search does not."""
        environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self.folder}/mlflow.db",
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.folder / "artifacts"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill it with its workers."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Disk:
    """A file system of its own of `size_mib` for the workspace, where this account may mount one."""

    def __init__(self, folder: Path, size_mib: int = 256) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        options = ["-o", f"size={size_mib}m"]
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True)
        self.mounted = done.returncode == 0
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 16))

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Take the file system away."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=False)


def busy_workers() -> list[psutil.Process]:
    """The workers that are at a piece right now, by the name that Ray gives them."""
    return ours(tuple(f"ray::{stage}: " for stage in STAGES))


def starve(worker: psutil.Process, seconds: float = 1.0) -> None:
    """Let a worker have no more memory for a while: its next allocations fail."""
    soft, hard = worker.rlimit(psutil.RLIMIT_AS)
    worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms, hard))
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        name = worker.cmdline()
        while time.monotonic() < deadline and worker.cmdline() == name:
            time.sleep(0.01)
        worker.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY if soft < 0 else soft, hard))


def fill_object_stores(address: str) -> subprocess.Popen[bytes]:
    """Put twice into every node's object store what it holds, so that it is full and spills; ends by itself."""
    command = [sys.executable, "-c", FILL, address, str(2 * STORE_BYTES)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def ours(starts: tuple[str, ...] = ("",)) -> list[psutil.Process]:
    """Live processes with our mark, whose command begins with, or for paths contains, one of `starts`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = " ".join(process.cmdline())
            wanted = any(command.startswith(start) or ("ray" in start and start in command) for start in starts)
            if wanted and process.environ().get(MARK) == os.environ[MARK]:
                found.append(process)
    return found


def end_all(processes: list[psutil.Process]) -> None:
    """Kill processes of ours."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=20)
