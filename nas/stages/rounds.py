"""rounds: searches one after another, each from the last one's child, under budgets that tighten (iterative Puzzle).

Each is an ordinary search in a workspace of its own, `rounds/<number>`, of an ordinary job: its parent is the exported
child of the one before, and `original` names the job's own parent, which teaches every child and which quality and
budgets are relative to. So a round stops, goes on and is looked at as any search; here is only what leads from one to
the next.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.cluster.errors import ClusterError, LockedError
from inlay.cluster.lock import locked
from inlay.nas.check import check_job
from inlay.nas.engines.registry import storage_of
from inlay.nas.errors import InfeasibleError, InlayError, UserError
from inlay.nas.families import Shape, open_parent, unpacked
from inlay.nas.job import Job
from inlay.nas.job.rounds import round_values
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.recording.unsent import send_unsent
from inlay.nas.stages.run import RunResult, begin, fingerprint_of, open_job_parent, run_job, unpacked_place
from inlay.nas.tables.idle_limits import parent_sizes
from inlay.nas.variants import space_problems
from inlay.nas.variants.kind import LISTS
from inlay.nas.workspace import ROUNDS_FILE, Workspace

CHILD = "child"
PARENT_FILE = "parent.json"
"""The parent's own quantities, which absolute limits of earlier rounds lie between."""


def run_rounds(
    job: Job,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
    name: str | None = None,
    address: str | None = None,
) -> RunResult:
    """Runs a job, or what is left of it: one search, or as many as it has rounds; arguments and errors as of `run_job`.

    Of several rounds the result is the last one's, its stages summed over all.
    """
    place = Workspace(workspace if workspace is not None else job.default_workspace())
    _check_kind(job, place)
    if job.rounds == 1:
        return run_job(job, place.url, reporter, name, address)
    reporter = reporter or Reporter()
    source = open_job_parent(job)
    fingerprint = fingerprint_of(job, source)
    if (place.find_json(ROUNDS_FILE) or {}).get("finished") == fingerprint:
        for number in range(1, job.rounds + 1):
            send_unsent(job, place.round(number), reporter)
        return _result(job, place, already_done=True)
    for warning in check_job(job):
        reporter.warning(warning)
    place.check_free()
    with unpacked(source, unpacked_place(job, place)) as parent:
        place.check_parent(parent.digest, job.parent)
    name, address = name or str(job.file or place.url), address or job.cluster.address
    try:
        with locked(place.store, name, reporter.message) as lock:
            place = Workspace(place.url, lock)
            place.claim(parent.digest, job.parent)
            _run_all(job, place, reporter, name, address, fingerprint)
    except LockedError as error:
        raise UserError(f"workspace: {error}") from error
    except ClusterError as error:
        raise InlayError(
            f"{error}; what is finished is kept in {place.url}, the same command goes on from there"
        ) from error
    return _result(job, place, already_done=False)


def _check_kind(job: Job, place: Workspace) -> None:
    """A workspace holds one search or rounds of them: its figures are the one's or the others'."""
    if not place.exists():
        return
    if job.rounds > 1 and place.store.exists("run.json"):
        raise UserError(
            f"rounds: {place.url} holds a search in one round; give another --workspace, or write rounds: 1"
        )
    if job.rounds == 1 and place.store.exists(ROUNDS_FILE):
        raise UserError(f"rounds: {place.url} holds a search in several rounds; give another --workspace")


def _run_all(job: Job, place: Workspace, reporter: Reporter, name: str, address: str | None, fingerprint: str) -> None:
    values = _parent_values(job, place, reporter, name, address)
    done: list[dict[str, Any]] = []
    folder: Path | None = None
    for number in range(1, job.rounds + 1):
        own = place.round(number)
        round_job = job_of_round(job, place, number, folder, values, reporter)
        if folder is not None:
            own.adopt(open_parent(folder).digest, str(folder))
        told = {"round": number, "budget": round_job.budget.to_dict(), "parent": round_job.parent}
        place.write_json(ROUNDS_FILE, {"of": job.rounds, "finished": None, "rounds": [*done, told]})
        reporter.round_started(number, job.rounds)
        try:
            result = run_job(round_job, own.url, reporter, name, address)
        except InfeasibleError as error:
            raise InfeasibleError(f"round {number} of {job.rounds}: {error}") from error
        done.append({**told, **_came_to(result.evaluation)})
        folder = _child_folder(job, place, own)
    _link(place, job.rounds)
    place.write_json(ROUNDS_FILE, {"of": job.rounds, "finished": fingerprint, "rounds": done})


def job_of_round(
    job: Job,
    place: Workspace,
    number: int,
    child: Path | None,
    parent: Mapping[str, Mapping[str, float]],
    reporter: Reporter,
) -> Job:
    """The job of one round.

    Args:
        job: the whole one.
        place: its workspace.
        number: of the round, from 1.
        child: the exported child of the round before; None for the first.
        parent: the original's quantities by scenario, as far as the budget needs them.
        reporter: told of alternatives that no layer of the child can take; they are left out.

    Raises:
        UserError: none is left.
    """
    values = round_values(job, number, parent)
    if values["cluster"]["scratch"] is None and place.folder is not None:
        values["cluster"]["scratch"] = str(place.folder / "scratch")  # what is unpacked of a GGUF file serves all
    if child is not None:
        values |= {"original": job.parent, "parent": str(child)}
        values["space"] |= _space_for(job, number, open_parent(child).shape, reporter)
    return Job.from_dict(values, folder=job.folder)


def _space_for(job: Job, number: int, shape: Shape, reporter: Reporter) -> dict[str, list[Any]]:
    """The alternatives that some layer can still take."""
    kept: dict[str, list[Any]] = {}
    for listed in LISTS:
        items = getattr(job.space, listed)
        alone = [job.space.model_copy(update={**dict.fromkeys(LISTS, ()), listed: (item,)}) for item in items]
        wrong = [item for item, space in zip(items, alone, strict=True) if space_problems(space, shape)]
        kept[listed] = [item for item in items if item not in wrong]
        if wrong:
            told = ", ".join(_shown(item) for item in wrong)
            reporter.message(
                f"round {number} of {job.rounds}: no layer of its parent can take {listed} {told} any more"
            )
    if not any(kept.values()):
        raise UserError(
            f"rounds: no layer of the child of round {number - 1} can take any alternative of `space`; write "
            f"rounds: {number - 1}, or give `space` smaller ones"
        )
    return kept


def _shown(item: Any) -> str:
    return item if isinstance(item, str) else ", ".join(f"{name}: {value}" for name, value in item.items())


def _parent_values(
    job: Job, place: Workspace, reporter: Reporter, name: str, address: str | None
) -> dict[str, dict[str, float]]:
    """The parent's quantities by scenario; of what is measured only where an absolute limit is on it, and once."""
    absolute = {limit.name for limit in job.budget if limit.ratio is None}
    with unpacked(open_job_parent(job), unpacked_place(job, place)) as parent:
        sizes = sizes_of_parent(job, parent.shape)
    if absolute <= set(next(iter(sizes.values()))):
        return sizes
    told = {"parent": place.read_json("workspace.json")["parent_digest"], "hardware": job.section("hardware")}
    if (known := place.find_json(PARENT_FILE)) is not None and {key: known[key] for key in told} == told:
        return dict(known["values"])
    from inlay.nas.loop.search import Search
    from inlay.nas.stages.measure import cost_rows
    from inlay.nas.tables.costs import CostTable, quantities

    # By the pieces of the first round's own measure, which finds them there.
    first = Job.from_dict(round_values(job, job.rounds, {}), folder=job.folder)
    started = time.monotonic()
    reporter.stage_started("measure")
    with begin(first, place.round(1), open_job_parent(first), reporter, name, address) as begun:
        costs = CostTable(cost_rows(Search(first, begun.place, begun.parent, begun.cluster, reporter)))
        reference = costs.reference(begun.parent.shape.num_layers)
    values = {
        scenario.name: quantities(costs.total(scenario.name, reference), scenario.batch_size * scenario.generate)
        for scenario in job.hardware.scenarios
    }
    reporter.stage_finished(
        "measure", time.monotonic() - started, note="the parent's, which the rounds' limits lie below"
    )
    place.write_json(PARENT_FILE, {**told, "values": values})
    return values


def sizes_of_parent(job: Job, shape: Shape) -> dict[str, dict[str, float]]:
    """The parent's exact quantities by scenario."""
    storage = storage_of(job.hardware, shape)
    return {each.name: dict(parent_sizes(shape, each, storage)) for each in job.hardware.scenarios}


def _came_to(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    chosen = evaluation[evaluation["chosen"]]
    figures = ("kl_nats", "perplexity", "parameters", "weights_bytes", "runtime_ratio")
    return {"chosen": evaluation["chosen"], **{name: chosen[name] for name in figures}}


def _child_folder(job: Job, place: Workspace, own: Workspace) -> Path:
    """The exported child of a round, in a folder that workers read: under a URL it is written to scratch once more."""
    if own.folder is not None:
        return own.folder / CHILD
    from inlay.nas.loop.search import scratch_of_job
    from inlay.nas.stages.export import export_child

    digest = own.read_json("run.json")["models"][own.read_json("evaluation.json")["chosen"]]["blob"]
    folder = scratch_of_job(job, place) / "rounds" / digest
    return folder if folder.exists() else export_child(own, "hf", folder)


def _link(place: Workspace, number: int) -> None:
    """Figures and child of a local workspace are the last round's; under a URL they are only there."""
    if place.folder is None:
        return
    for name in (CHILD, "evaluation.json"):
        beside = place.folder / f".{name}.{uuid.uuid4().hex}.part"
        os.symlink(Path("rounds") / str(number) / name, beside, target_is_directory=name == CHILD)
        os.replace(beside, place.folder / name)


def _result(job: Job, place: Workspace, *, already_done: bool) -> RunResult:
    """The last round's, its stages with what they took in all rounds."""
    runs = [place.round(number).read_json("run.json") for number in range(1, job.rounds + 1)]
    last = place.round(job.rounds)
    run = {**runs[-1], "stages": _summed(runs)}
    url = place.url if place.folder is not None else last.url
    return RunResult(url, last.read_json("evaluation.json"), run, already_done)


_ADDED = ("seconds", "pieces", "cpu_hours", "gpu_hours", "planned_seconds", "operations", "read_bytes")
"""What of a stage is added up over rounds."""


def _summed(runs: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for stage in run["stages"]:
            held = found.setdefault(stage["name"], {"name": stage["name"], **dict.fromkeys(_ADDED, 0), "peak_bytes": 0})
            for name in _ADDED:
                held[name] += stage.get(name, 0)
            held["peak_bytes"] = max(held["peak_bytes"], stage["peak_bytes"])
    return list(found.values())
