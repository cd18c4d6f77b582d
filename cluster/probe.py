"""Asks every node of a cluster whether its workers can use what a job names: files to read, a workspace to share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inlay.cluster.errors import StoreError
from inlay.cluster.runtime import Cluster
from inlay.cluster.store import Store

_KEY = "probe/{}"


@dataclass(frozen=True)
class Shared:
    """A place that all workers must share, and something that was just put there for them to find."""

    role: str
    """`workspace` or `scratch`."""
    place: str
    """A folder or an fsspec URL."""
    mark: str
    """A file, or a key of the store behind the URL."""


def probe_nodes(
    cluster: Cluster,
    paths: Sequence[str],
    workspace: str,
    inlay_version: str,
    scratch: str | None = None,
    timeout_seconds: float = 120.0,
) -> list[str]:
    """Return one sentence for everything that a worker of a live node cannot use; none is good news."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cluster.start()
    task = ray.remote(probe_here)
    asked = {}
    with contextlib.ExitStack() as marks:
        shared = []
        for role, place in (("workspace", workspace), ("scratch", scratch)):
            if place is not None:
                try:
                    shared.append(Shared(role, place, marks.enter_context(marked(place))))
                except (StoreError, OSError) as error:
                    return [f"the node of the job cannot write the {role} {place}: {_reason(error)}"]
        for node in cluster.nodes():
            here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            options = task.options(num_cpus=0, max_retries=1, scheduling_strategy=here)
            asked[cluster.head.ask(options.remote, list(paths), shared, inlay_version)] = node
        answered, silent = cluster.head.ask(ray.wait, list(asked), num_returns=len(asked), timeout=timeout_seconds)
        problems = [(asked[reference], f"did not answer within {timeout_seconds:g} s") for reference in silent]
        for reference in answered:
            try:
                problems += [(asked[reference], problem) for problem in cluster.head.ask(ray.get, reference)]
            except ray.exceptions.RayError as error:
                problems.append((asked[reference], _failure(error)))
        alive = {node["NodeID"] for node in cluster.nodes()}
    return [f"the node {node['NodeManagerAddress']} {text}" for node, text in problems if node["NodeID"] in alive]


def probe_here(paths: Sequence[str], shared: Sequence[Shared], inlay_version: str) -> list[str]:
    """Return what this process cannot use, each as the end of a sentence."""
    problems = []
    here = importlib.metadata.version("inlay")
    if here != inlay_version:
        problems.append(f"has inlay {here}, the job was submitted with {inlay_version}; use the same")
    for path in paths:
        if not Path(path).exists():
            problems.append(f"does not have {path}; put it on a folder that all nodes share")
        elif not os.access(path, os.R_OK):
            problems.append(f"may not read {path}; change its permissions")
    for each in shared:
        try:
            there = Path(each.mark).exists() if "://" not in each.place else Store(each.place).exists(each.mark)
            if not there:
                problems.append(
                    f"does not see what another node writes to the {each.role} {each.place}; name a folder that all "
                    "nodes share, or a URL"
                )
                continue
            with marked(each.place):
                pass
        except (StoreError, OSError) as error:
            problems.append(f"cannot write the {each.role} {each.place}: {_reason(error)}")
    return problems


@contextlib.contextmanager
def marked(place: str) -> Iterator[str]:
    """Put something into a place for the body and take it away again, so that an empty place stays empty.

    A folder that is not there yet is not made: the mark lies in the nearest one above it.
    """
    if "://" in place:
        store, key = Store(place), _KEY.format(uuid.uuid4().hex)
        store.put(key, b"")
        try:
            yield key
        finally:
            store.delete(key)
        return
    folder = Path(place)
    there = next(above for above in (folder, *folder.parents) if above.exists())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".inlay-probe-") as stream:
        stream.write(b"inlay")
        yield stream.name


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _failure(error: Exception) -> str:
    """Return what went wrong with a probe itself, in a line."""
    text = str(getattr(error, "cause", None) or error)
    if "No module named" in text:
        return "does not have inlay, or not all that it needs; install the same version there"
    return f"could not be asked: {text.strip().splitlines()[-1][:200]}"
