"""What the tests of the cluster room share: a Ray of our own, and real clusters of several nodes, token on."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from inlay.cluster import Cluster, ClusterSettings, Store, connect
from inlay.cluster.http import HttpError, request_json
from inlay.cluster.processes import Spawned, end, free_port, spawn
from inlay.cluster.ray_token import protect_token, ray_authorization
from inlay.cluster.services import job_resources

_STORE_BYTES = 90 * 2**20


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two workers; workers cannot import test modules, so what those define travels by value."""
    from ray import cloudpickle

    module = sys.modules[request.module.__name__]
    cloudpickle.register_pickle_by_value(module)
    with connect(ClusterSettings(workers=2)) as cluster:
        yield cluster
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")


@pytest.fixture(scope="session")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[RayNodes]]:
    """`with ray_nodes(cpus=1, slots=1, growth=None, v2=False) as nodes` gives a cluster with a job server, and ends it.

    `v2` has Ray's second autoscaler, which KubeRay's clusters use.
    """

    @contextmanager
    def start(**options: Any) -> Iterator[RayNodes]:
        nodes = RayNodes(tmp_path_factory.mktemp("nodes"), **options)
        try:
            nodes.wait(1)
            yield nodes
        finally:
            nodes.close()

    return start


@pytest.fixture
def job(tmp_path: Path, tiny_parent: Callable[..., Path]) -> Path:
    """A right job on a tiny parent, that takes seconds."""
    for name, count in (("train", 60), ("held_out", 40)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} story {n}\n<|endoftext|>\n" for n in range(count)))
    values = {
        "parent": str(tiny_parent("llama")),
        "data": {
            "distill": {"path": "train.txt", "sequence_length": 16},
            "validate": {"path": "held_out.txt", "tokens": 256},
        },
        "space": {"attention": [{"kv_heads": 1}, "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
        "distill": {"tokens": 64, "batch_size": 2},
        "recover": {"tokens": 64, "batch_size": 2},
        "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.95x"},
        "tracking": {"experiment": "verbs"},
    }
    path = tmp_path / "stories.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class RayNodes:
    """A head and its nodes, each a process family of this machine; nobody else's is touched."""

    def __init__(
        self, folder: Path, *, cpus: int = 1, slots: int = 1, growth: dict[str, Any] | None = None, v2: bool = False
    ) -> None:
        protect_token()
        os.environ["RAY_AUTH_MODE"] = "token"  # as people say it: these are no cluster of `inlay up`
        self.folder = folder
        self.sessions = Path(tempfile.mkdtemp(prefix="in", dir="/tmp"))  # sockets have short paths
        self.port, self.dashboard = free_port(0), free_port(0)
        self.address, self.url = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.dashboard}"
        self.nodes: list[Spawned] = []
        words = ["--head", "--port", str(self.port), "--dashboard-port", str(self.dashboard)]
        words += ["--include-dashboard", "true", "--temp-dir", str(self.sessions)]
        if growth is not None:
            file = folder / "growth.json"
            file.write_text(json.dumps(_growing(growth, cpus, self.address)))
            words += ["--autoscaling-config", str(file)]
        self.growth, self.v2 = growth, v2
        self.add(cpus, words, job_resources(slots))

    def add(self, cpus: int, words: list[str] | None = None, resources: dict[str, int] | None = None) -> Spawned:
        """Starts a node, a worker's unless `words` say more."""
        words = words if words is not None else ["--address", self.address]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *words]
        command += [
            "--node-ip-address",
            "127.0.0.1",
            "--num-cpus",
            str(cpus),
            "--object-store-memory",
            str(_STORE_BYTES),
        ]
        # Nodes of one address must not share the ports that are the same on every machine.
        command += ["--dashboard-agent-listen-port", str(free_port(0)), "--metrics-export-port", str(free_port(0))]
        command += ["--resources", json.dumps(resources or {})]
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": "8",
            "INLAY_PYTHON": sys.executable,
        }
        environment.pop("RAY_ADDRESS", None)
        if self.v2:
            environment["RAY_enable_autoscaler_v2"] = "1"
        if self.growth is not None:
            environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        self.nodes.append(spawn(command, environment, self.folder / "logs" / f"node{len(self.nodes)}.log"))
        return self.nodes[-1]

    def lose(self, number: int) -> None:
        """Kills a node with everything on it, as a machine that loses power does."""
        end(self.nodes[number], patience_seconds=0)

    def wait(self, count: int, patience_seconds: float = 240.0) -> None:
        """Returns when the job server answers and knows this many live nodes."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                answer = self._get("/api/v0/nodes?limit=100")["data"]["result"]["result"]
                self._get("/api/jobs/")
                if sum(node["state"] == "ALIVE" for node in answer) == count:
                    return
            except HttpError:
                pass  # it is starting
            assert time.monotonic() < deadline, (self.folder / "logs" / "node0.log").read_text()[-2000:]
            time.sleep(0.5)

    def _get(self, path: str) -> Any:
        """The JSON value at a path of the cluster's own address, asked for with its token."""
        return request_json("GET", f"{self.url}{path}", authorization=ray_authorization())

    def close(self) -> None:
        """Ends all nodes."""
        for node in reversed(self.nodes):
            end(node, patience_seconds=5)


def _growing(kinds: dict[str, Any], cpus: int, address: str) -> dict[str, Any]:
    """Returns the configuration of Ray's autoscaler whose nodes are processes of this machine."""
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    lists += ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    head = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
    # By the class, since Ray's own short name wants a file that its wheel leaves out, in its second autoscaler.
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        "cluster_name": "grows",
        "max_workers": 4,
        "provider": {"type": "external", "module": provider, "gcs_address": address},
        "available_node_types": {
            "ray.head.default": head,
            **{name: {"node_config": {}, **kind} for name, kind in kinds.items()},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
        **{name: {} for name in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
    }
