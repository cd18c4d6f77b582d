"""inlay: turn a language model into a faster one that fits a stated budget and keeps its quality.

    job = inlay.Job.load("job.yaml")
    result = inlay.run(job)
    model = inlay.load_child(result.workspace)

    handle = inlay.Client().submit(job)  # the same on a cluster
    handle.wait()

Importing this package registers the exported model type with Transformers as soon as Transformers is imported; it
imports neither torch nor Transformers itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inlay._register import register_when_transformers_comes
from inlay.version import __version__

if TYPE_CHECKING:
    from inlay.nas.api import load_child, run, solve
    from inlay.nas.client import Client, JobHandle
    from inlay.nas.job import Job

__all__ = ["Client", "Job", "JobHandle", "__version__", "load_child", "run", "solve"]

_PLACES = {
    "Client": "inlay.nas.client",
    "JobHandle": "inlay.nas.client",
    "Job": "inlay.nas.job",
    "run": "inlay.nas.api",
    "solve": "inlay.nas.api",
    "load_child": "inlay.nas.api",
}

register_when_transformers_comes()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
