"""What a cluster can hold: whether a worker's share fits on a node, how many do, and what is on its way, in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.cluster.pieces import GPU_TYPE, Resources

Amounts = Mapping[str, float]
"""Resources by Ray's names: CPU, GPU, memory (bytes)."""
_SLACK = 1e-9
"""Shares of a CPU or GPU are added up as doubles."""


@dataclass(frozen=True)
class Growth:
    """What the autoscaler of a cluster says of itself."""

    starting: Mapping[str, int]
    """Nodes on their way, by kind."""
    failed: Mapping[str, int]
    """Nodes that could not be started or were lost, by kind."""

    def __str__(self) -> str:
        parts = [f"{_counted(count)} of the kind {kind} on the way" for kind, count in sorted(self.starting.items())]
        parts += [f"{_counted(count)} of the kind {kind} failed" for kind, count in sorted(self.failed.items())]
        return "; ".join(parts) or "its autoscaler has no node on the way"


def live_resources(answer: Any) -> list[Amounts]:
    """Return what every live node has, from the answer of a dashboard's `/api/v0/nodes`; raises KeyError, TypeError."""
    found = answer["data"]["result"]["result"]
    return [node["resources_total"] for node in found if node["state"] == "ALIVE"]


def fits(node: Amounts, share: Resources) -> bool:
    """Tell whether a node with these resources can hold one worker with this share."""
    return all(node.get(name, 0) >= amount - _SLACK for name, amount in _wanted(share).items())


def room(nodes: Sequence[Amounts], share: Resources) -> int:
    """Return how many workers with this share the nodes hold together; the share books something."""
    wanted = _wanted(share)
    return sum(min(int((node.get(name, 0) + _SLACK) / amount) for name, amount in wanted.items()) for node in nodes)


def without(node: Amounts, share: Resources) -> Amounts:
    """Return what is left of a node's resources beside a worker with this share."""
    return {**node, **{name: node.get(name, 0) - amount for name, amount in _wanted(share).items()}}


def words(share: Resources) -> str:
    """`2 CPUs, 1 GPU, 4 GiB of memory`; what is not asked for is left out."""
    return _listed(_wanted(share))


def misfit(nodes: Sequence[Amounts], share: Resources) -> str | None:
    """Return why no node can ever hold a worker with this share, as a sentence without its subject; None when one can.

    The node that is named is the one that has the most of what is asked for first: the kind of GPU, GPUs, then memory,
    then CPUs.
    """
    if any(fits(node, share) for node in nodes):
        return None
    if not nodes:
        return f"a worker needs {words(share)}, and the cluster has no node"
    wanted = _wanted(share)
    scarcest = [*share.custom, *(name for name in _SCARCEST if name in wanted)]
    largest = max(nodes, key=lambda node: [node.get(name, 0) for name in scarcest])
    return f"a worker needs {words(share)}, and the largest node has {_listed({n: largest.get(n, 0) for n in wanted})}"


def crowded(nodes: Sequence[Amounts], share: Resources, count: int) -> str | None:
    """Return why `count` workers with this share can never run at once, as a sentence; None when they can."""
    places = room(nodes, share)
    if places >= count:
        return None
    return f"{count} workers with {words(share)} each are to run at once, and there is room for {places}"


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory() -> int:
    """Return how many bytes this process and its children may hold: the machine's, or its control group's if less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
    return total


def read_growth(status: str | bytes | Mapping[str, Any] | None) -> Growth | None:
    """Return what Ray's first autoscaler wrote into the cluster's table, None where nothing can make the cluster grow.

    Every Ray head runs a monitor. One that was given no kinds of nodes calls each node's kind `node_<its id>`.
    """
    if not status:
        return None
    report = (json.loads(status) if isinstance(status, str | bytes) else status).get("autoscaler_report") or {}
    kinds: Mapping[str, str] = report.get("node_type_mapping") or {}
    if not kinds or all(kind == f"node_{node}" for node, kind in kinds.items()):
        return None
    starting = Counter(report.get("pending_launches") or {})
    starting.update(kind for _, kind, *_ in report.get("pending_nodes") or ())
    return Growth(dict(starting), dict(Counter(kind for _, kind, *_ in report.get("failed_nodes") or ())))


def growth_of(status: Any) -> Growth | None:
    """Return what Ray's second autoscaler says, a `ray.autoscaler.v2.schema.ClusterStatus`; None as for `read_growth`.

    It has reported once its version is above 0; one without kinds of nodes calls them as the first one does.
    """
    coming = [*status.pending_nodes, *status.pending_launches]
    lost = [*status.failed_nodes, *status.failed_launches]
    nodes = [*status.active_nodes, *status.idle_nodes]
    kinds = {each.ray_node_type_name for each in (*coming, *lost, *nodes)}
    if int(status.stats.autoscaler_version or 0) == 0 or all(kind.startswith(_NO_KIND) for kind in kinds):
        return None
    starting, failed = Counter[str](), Counter[str]()
    for counts, found in ((starting, coming), (failed, lost)):
        for each in found:
            counts[each.ray_node_type_name] += getattr(each, "count", 1)
    return Growth(dict(starting), dict(failed))


def read_status_text(text: str) -> Growth | None:
    """Return the same from the text of `ray status`, which is all that a dashboard gives of the second autoscaler."""
    sections: dict[str, list[str]] = {}
    section: list[str] = []
    for line in text.partition("\nResources\n")[0].splitlines():
        if not line.startswith(" "):
            section = sections.setdefault(line.strip(), [])
        elif not line.startswith(" ("):
            section.append(line.strip())
    nodes = [line.split(maxsplit=1)[-1] for name in ("Active:", "Idle:") for line in sections.get(name, ())]
    starting, failed = Counter[str](), Counter[str]()
    for line in sections.get("Pending:", ()):
        if launching := re.fullmatch(r"([^\s,]+), (\d+) launching", line):
            starting[launching[1]] += int(launching[2])
        elif pending := re.match(r"\S+: ([^\s,]+),", line):
            starting[pending[1]] += 1
    for line in sections.get("Recent failures:", ()):
        failed[line.partition(":")[0]] += 1
    if all(kind.startswith(_NO_KIND) for kind in (*nodes, *starting, *failed)):
        return None
    return Growth(dict(starting), dict(failed))


_NO_KIND = "node_"
_SCARCEST = ("GPU", "memory", "CPU")


def _wanted(share: Resources) -> dict[str, float]:
    amounts: dict[str, float] = {"CPU": share.cpus, "GPU": share.gpus, "memory": share.memory_bytes}
    return {name: amount for name, amount in amounts.items() if amount} | share.custom


def _listed(amounts: Amounts) -> str:
    parts = [
        f"{amounts[name]:g} {name}{'' if amounts[name] == 1 else 's'}" for name in ("CPU", "GPU") if name in amounts
    ]
    if "memory" in amounts:
        parts.append(f"{amounts['memory'] / 2**30:.3g} GiB of memory")
    for name in amounts:
        if name.startswith(GPU_TYPE):
            parts.append(f"{'' if amounts[name] else 'no '}{name.removeprefix(GPU_TYPE)}")
    return ", ".join(parts)


def _counted(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
