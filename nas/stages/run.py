"""run: a whole search on one workspace, from the job to the exported child; run again, it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.cluster.errors import ClusterError, LockedError
from inlay.cluster.lock import locked
from inlay.cluster.runtime import Cluster, check_machine, connect
from inlay.nas.check import check_job
from inlay.nas.embedded import embedded_parent
from inlay.nas.engines.fitting import check_installed
from inlay.nas.errors import InlayError, UserError
from inlay.nas.families import GgufFile, Parent, open_parent, open_source, unpacked
from inlay.nas.job import Job, sources_by_field
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.recording.unsent import send_unsent
from inlay.nas.workspace import Workspace
from inlay.version import __version__

if TYPE_CHECKING:
    from inlay.nas.loop.texts import Packed

EMBEDDED = "inlay:"
IMPORTED_BY_WORKERS = ("inlay.nas.pieces.library", "inlay.nas.pieces.comparison")


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Args:
        workspace: where everything lies.
        evaluation: the contents of evaluation.json.
        run: the contents of run.json: stages with seconds, peak bytes and pieces; the kept architecture; failures.
        already_done: whether there was nothing left to do.
    """

    workspace: str
    evaluation: dict[str, Any]
    run: dict[str, Any]
    already_done: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def run_job(
    job: Job,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
    name: str | None = None,
    address: str | None = None,
) -> RunResult:
    """Runs a job, or what is left of it.

    Args:
        job: the job.
        workspace: folder or URL; by default `<job file's stem>.search` beside the job file.
        reporter: told of stages and pieces; by default plain lines on stderr.
        name: what others who want the workspace meanwhile are told; by default the job file.
        address: the running cluster to use in place of the job's own `cluster.address`, which is what is recorded.

    Raises:
        UserError: the job, its parent or its text is wrong; nothing was written.
        InfeasibleError: no architecture meets the budget; tables are kept.
        InlayError: a worker or the disk failed; every finished piece is kept and the same call goes on from there.
    """
    reporter = reporter or Reporter()
    place = Workspace(workspace if workspace is not None else job.default_workspace())
    parent = open_job_parent(job)
    fingerprint = fingerprint_of(job, parent)
    done = _finished(place, fingerprint)
    if done is not None:
        send_unsent(job, place, reporter)
        return done
    for warning in check_job(job):
        reporter.warning(warning)
    address = address or job.cluster.address
    if address is None and job.hardware.costs is None:
        check_installed(job.hardware, parent.shape, job.python)
    try:
        return _run(job, place, parent, fingerprint, reporter, name or str(job.file or place.url), address)
    except LockedError as error:
        raise UserError(f"workspace: {error}") from error
    except ClusterError as error:
        raise InlayError(
            f"{error}; what is finished is kept in {place.url}, the same command goes on from there"
        ) from error


def open_job_parent(job: Job) -> Parent | GgufFile:
    """The job's parent, opened and checked as far as headers tell; a GGUF file is not unpacked."""
    return _opened(job, job.parent)


def open_job_original(job: Job) -> Parent | GgufFile | None:
    """The model that the job's parent is a child of, opened as the parent is; None where the job names none."""
    return None if job.original is None else _opened(job, job.original)


def original_of(job: Job, place: Workspace) -> Parent | None:
    """The same in a folder, a GGUF file unpacked."""
    source = open_job_original(job)
    if source is None:
        return None
    with unpacked(source, unpacked_place(job, place)) as original:
        return original


def _opened(job: Job, name: str) -> Parent | GgufFile:
    if name.startswith(EMBEDDED):
        return open_parent(embedded_parent(name.removeprefix(EMBEDDED)))
    return open_source(job.resolve(name), job.revision, job.tracking.uri)


def unpacked_place(job: Job, place: Workspace) -> Path:
    """Where GGUF parents are unpacked: on scratch, which every worker reads, and which can be computed again."""
    from inlay.nas.loop.search import scratch_of_job

    return scratch_of_job(job, place) / "parents"


def fingerprint_of(job: Job, parent: Parent | GgufFile) -> str:
    """Changes whenever a finished run would have to do something again: job, parent files, texts, costs, version."""
    values = job.to_dict()
    for free in ("cluster", "tracking"):
        values.pop(free)
    texts = []
    for part in ("distill", "validate"):
        for source in sources_by_field(getattr(job.data, part), part).values():
            texts += _stamps(job.resolve(source.path))
    if job.hardware.costs is not None:
        texts.append(_stamp(job.resolve(job.hardware.costs)))
    original = open_job_original(job)
    told = [values, parent.fingerprint, texts, __version__, *([] if original is None else [original.fingerprint])]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _stamps(path: str) -> list[list[object]]:
    """The stamps of a source's files: a folder's own do not change with what its files hold."""
    return [_stamp(path), *(_stamp(str(file)) for file in sorted(Path(path).glob("*") if Path(path).is_dir() else ()))]


def _stamp(path: str) -> list[object]:
    """A file's path and, where it is there, what changes with its contents."""
    stat = os.stat(path) if os.path.exists(path) else None
    return [path, stat.st_size, stat.st_mtime_ns] if stat else [path]


def _finished(place: Workspace, fingerprint: str) -> RunResult | None:
    run = place.find_json("run.json") if place.exists() else None
    if run is None or run.get("finished") != fingerprint:
        return None
    return RunResult(place.url, place.read_json("evaluation.json"), run, True)


def _run(
    job: Job,
    place: Workspace,
    source: Parent | GgufFile,
    fingerprint: str,
    reporter: Reporter,
    name: str,
    address: str | None,
) -> RunResult:
    with ExitStack() as stack:
        begun = stack.enter_context(begin(job, place, source, reporter, name, address))
        from inlay.nas.stages.pipeline import Pipeline  # takes as long as in a worker, and at the same time

        pipeline = Pipeline(job, begun.place, begun.parent, begun.cluster, reporter, fingerprint, begun.original)
        evaluation, run = stack.enter_context(pipeline).run(begun.packed)
    return RunResult(place.url, evaluation, run, False)


@dataclass(frozen=True)
class Begun:
    """What a run works with once nothing was found to be wrong.

    Args:
        place: the workspace, locked.
        parent: open and checked.
        cluster: connected.
        packed: the texts; None where the parent is to write one.
        original: what the parent is a child of, open and checked; None where the job names none.
    """

    place: Workspace
    parent: Parent
    cluster: Cluster
    packed: Packed | None
    original: Parent | None


@contextmanager
def begin(
    job: Job, place: Workspace, source: Parent | GgufFile, reporter: Reporter, name: str, address: str | None
) -> Iterator[Begun]:
    """Checks all that can be, takes the workspace's lock and reaches the workers; gives both back at the end.

    Args: as of `run_job`; `source` is the job's parent.

    Raises:
        UserError: something is wrong, and nothing was written.
        LockedError: another run has the workspace.
    """
    from inlay.nas.loop.recovery_memory import check_recovery
    from inlay.nas.loop.search import cluster_settings
    from inlay.nas.loop.texts import pack_texts

    place.check_free()
    with unpacked(source, unpacked_place(job, place)) as parent:
        parent.check_finite()
        place.check_parent(parent.digest, job.parent)
        original = original_of(job, place)
        if original is not None:
            original.check_finite()
        check_recovery(job, parent, None if original is None else original.shape)
        samples = any(text.sample is not None for text in (job.data.distill, job.data.validate))
        packed = None if samples else pack_texts(job, parent.tokenizer())
    settings = replace(cluster_settings(job, place), address=address)
    share = partial(_blames, "cluster", "ask for less per worker")
    ranks = partial(_blames, "recover.workers", "lower it, or name a larger cluster in cluster.address")
    with share():
        check_machine(settings)
    with ranks():
        check_machine(settings, job.recover.workers)
    with ExitStack() as stack:
        place = Workspace(place.url, stack.enter_context(locked(place.store, name, reporter.message)))
        cluster = stack.enter_context(connect(settings))
        with share():
            cluster.check_share()
        # More ranks than there is room for are told before anything is trained.
        with ranks():
            cluster.check_together(job.recover.workers)
        place.claim(parent.digest, job.parent)
        cluster.preload(*IMPORTED_BY_WORKERS)
        yield Begun(place, parent, cluster, packed, original)


@contextmanager
def _blames(field: str, way_out: str) -> Iterator[None]:
    """What fits nowhere is the job's mistake: the field, what the cluster says of it, and the way out."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{field}: {error}; {way_out}") from error
