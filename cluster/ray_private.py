"""Every name of Ray's that Ray does not promise to keep, and what we do with it; no other file of ours uses one.

Each is a `PrivateName` of this file, which its test finds by itself. When Ray is raised to another version, run
tests/cluster/test_ray_private.py and write the version down here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PrivateName:
    """A name inside Ray."""

    module: str
    name: str
    """With dots below the module."""
    tried_with: str
    """The last version of Ray that had it and did with it what we expect."""

    def get(self) -> Any:
        """Return what Ray has under the name; raises ImportError or AttributeError where it is gone."""
        return attrgetter(self.name)(importlib.import_module(self.module))


CLUSTERS_ALLOWED = PrivateName("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", "2.60.0")
AUTOSCALER_STATUS = PrivateName("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS", "2.60.0")
CLUSTER_STATUS = PrivateName("ray.autoscaler.v2.sdk", "get_cluster_status", "2.60.0")
PARAMETERS = PrivateName("ray._private.parameter", "RayParams", "2.60.0")
SESSION_FOLDER = PrivateName("ray._private.worker", "_global_node.get_session_dir_path", "2.60.0")
PRINTER_ENDS = PrivateName("ray._private.worker", "global_worker.threads_stopped", "2.60.0")
PRINTER_HEARS = PrivateName("ray._private.worker", "global_worker.gcs_error_subscriber", "2.60.0")
TABLE_OF = PrivateName("ray.experimental.internal_kv", "internal_kv_get_gcs_client", "2.60.0")
TABLE_GET = PrivateName("ray.experimental.internal_kv", "_internal_kv_get", "2.60.0")
TABLE_PUT = PrivateName("ray.experimental.internal_kv", "_internal_kv_put", "2.60.0")
TABLE_DELETE = PrivateName("ray.experimental.internal_kv", "_internal_kv_del", "2.60.0")
PLACEMENT_GROUP_ID = PrivateName("ray._raylet", "PlacementGroupID", "2.60.0")
LIST_OF_COMMITS = PrivateName("ray.train.v2._internal.constants", "CHECKPOINT_MANAGER_SNAPSHOT_FILENAME", "2.60.0")


@contextlib.contextmanager
def on_the_loopback() -> Iterator[None]:
    """Have Ray heed LOOPBACK_ONLY in this process too, which may have imported it, and thereby read it, long before."""
    constants = importlib.import_module(CLUSTERS_ALLOWED.module)
    before = CLUSTERS_ALLOWED.get()
    setattr(constants, CLUSTERS_ALLOWED.name, False)
    try:
        yield
    finally:
        setattr(constants, CLUSTERS_ALLOWED.name, before)


@contextlib.contextmanager
def without_monitors() -> Iterator[None]:
    """Have `ray.init` leave out two processes that a Ray of one node, whose logs nobody is sent, does not need.

    They are the autoscaler and what sends logs to the driver; each costs the time of a Python that imports Ray. `init`
    has no option for them, but what it calls has.
    """
    module, parameters = importlib.import_module(PARAMETERS.module), PARAMETERS.get()
    setattr(module, PARAMETERS.name, partial(parameters, no_monitor=True, include_log_monitor=False))
    try:
        yield
    finally:
        setattr(module, PARAMETERS.name, parameters)


def silence() -> None:
    """End the thread that prints lost nodes, with their logs, on this program's stdout; a fan-out tells them in words.

    Ray has no setting for it; this is what it does itself when it disconnects, and doing so again is harmless.
    """
    with contextlib.suppress(AttributeError):  # another Ray's notices on stdout end no search
        PRINTER_ENDS.get().set()
        PRINTER_HEARS.get().close()


def session_folder() -> Path:
    """Return the folder that the Ray of this process writes its logs and sockets to."""
    return Path(SESSION_FOLDER.get()())


def autoscaler_status() -> bytes | None:
    """Return what the autoscaler of the cluster wrote of itself, None where it wrote nothing."""
    status: bytes | None = TABLE_GET.get()(AUTOSCALER_STATUS.get())
    return status


def second_autoscaler(gcs_address: str) -> Any:
    """Return what the second autoscaler, and the nodes themselves, tell the cluster's head: a `ClusterStatus`."""
    return CLUSTER_STATUS.get()(gcs_address)


def put_value(key: str, value: str, namespace: str) -> None:
    """Write a small value into the cluster's table, from any of its processes."""
    TABLE_PUT.get()(key, value, namespace=namespace)


def get_values(keys: Sequence[str], namespace: str) -> list[bytes | None]:
    """Return the values under these keys of the cluster's table in one request, None for one that is not there."""
    names = [key.encode() for key in keys]
    found = TABLE_OF.get()().internal_kv_multi_get(names, namespace.encode())
    return [found.get(name) for name in names]


def delete_value(key: str, namespace: str) -> None:
    """Take a value out of the cluster's table; one that is not there is no error."""
    TABLE_DELETE.get()(key, namespace=namespace)


def remove_placement_group(name: str) -> None:
    """Give back the placement group whose id has this hexadecimal form; one that is gone is no error."""
    import ray
    from ray.util.placement_group import PlacementGroup

    held = ray.util.placement_group_table().get(name, {"state": "REMOVED"})
    if held["state"] != "REMOVED":
        ray.util.remove_placement_group(PlacementGroup(PLACEMENT_GROUP_ID.get().from_hex(name)))


def list_of_commits(folder: Path) -> Path:
    """Return the file in which Ray Train keeps count of what was committed in a training's folder."""
    return folder / str(LIST_OF_COMMITS.get())
