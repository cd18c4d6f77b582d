"""Asks every node of a cluster whether its workers can use what a job names: files to read, a workspace to write."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from inlay.cluster.errors import StoreError
from inlay.cluster.runtime import Cluster, live_nodes
from inlay.cluster.store import Store


def probe_nodes(cluster: Cluster, paths: Sequence[str], workspace: str, timeout_seconds: float = 120.0) -> list[str]:
    """Return one sentence for everything that a worker of a live node cannot use; none is good news."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cluster.start()
    task = ray.remote(probe_here)
    asked = {}
    for node in live_nodes():
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        reference = task.options(num_cpus=0, max_retries=1, scheduling_strategy=place).remote(list(paths), workspace)
        asked[reference] = node["NodeManagerAddress"]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_seconds)
    problems = [f"the node {asked[reference]} did not answer within {timeout_seconds:g} s" for reference in silent]
    for reference in answered:
        problems += [f"the node {asked[reference]} {problem}" for problem in ray.get(reference)]
    return problems


def probe_here(paths: Sequence[str], workspace: str) -> list[str]:
    """Return what this process cannot use, each as the end of a sentence."""
    problems = []
    for path in paths:
        if not Path(path).exists():
            problems.append(f"does not have {path}; put it on a folder that all nodes share")
        elif not os.access(path, os.R_OK):
            problems.append(f"may not read {path}; change its permissions")
    try:
        _try_to_write(Store(workspace))
    except (StoreError, OSError) as error:
        problems.append(f"cannot write the workspace: {error}")
    return problems


def _try_to_write(store: Store) -> None:
    """Write something and take it away again, so that an empty place stays empty."""
    if store.folder is None:
        name = f"probe/{uuid.uuid4().hex}"
        store.put(name, b"")
        store.delete(name)
        return
    there = next(folder for folder in (store.folder, *store.folder.parents) if folder.exists())
    with tempfile.TemporaryFile(dir=there) as stream:
        stream.write(b"inlay")
