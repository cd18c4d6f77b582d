"""Other solutions of a finished search: stored by `inlay solve`, evaluated as real models, exported as assembled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inlay.cluster.runtime import connect
from inlay.nas.errors import UserError
from inlay.nas.families import Parent, unpacked
from inlay.nas.families.registered import is_registered
from inlay.nas.job import Job
from inlay.nas.loop.search import Search, SmallSearch, cluster_settings
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.loop.true_times import judged_times
from inlay.nas.pieces.assembled import TrainedModel, assembled_blob
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.estimate import START_SECONDS, token_seconds
from inlay.nas.stages.evaluate import rows_of
from inlay.nas.stages.quality import judged_text
from inlay.nas.stages.run import open_job_parent, original_of, unpacked_place
from inlay.nas.tables.architecture import Blocks, blocks_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.workspace import INPUTS_FILE, Workspace


def find_solution(place: Workspace, name: str) -> dict[str, Any]:
    """A stored solution by its id; UserError naming those that there are."""
    stored: dict[str, Any] | None = (
        place.find_json(f"solutions/{name}.json") if name.isascii() and name.isalnum() else None
    )
    if stored is None:
        ids = [key.removeprefix("solutions/").removesuffix(".json") for key in place.store.list("solutions/")]
        there = ", ".join(sorted(ids)) or "none yet; `inlay solve` stores them"
        raise UserError(f"--solution: there is no solution `{name}`; there are: {there}")
    return stored


def evaluate_solution(place: Workspace, name: str) -> dict[str, Any]:
    """Takes a stored solution's true KL on the report text and its true times; writes them beside it.

    Returns:
        Figures as in evaluation.json for `parent` and `child`, the solution's as assembled, without recovery.
    """
    stored = find_solution(place, name)
    job, parent = job_of(place)
    architecture = blocks_of(stored["architecture"])
    texts = Texts.of(place.read_json("texts.json"))
    ids = texts.report
    with connect(cluster_settings(job, place)) as cluster:
        # The solution and the unchanged parent, both beside the parent.
        kind = SmallSearch if is_small(job, parent, 3 * ids.tokens, ids.shape[1]) else Search
        search = kind(
            job, place, parent, cluster, Reporter(), inputs=inputs_of_workspace(place), original=original_of(job, place)
        )
        library, costs = library_of_workspace(place), CostTable(place.read_table("costs"))
        own, base = true_scores(search, ids, library, [architecture, costs.reference(parent.shape.num_layers)])
        times = {"child": judged_times(search, costs, [architecture], "times of it")[0]}
        rows = rows_of(search, costs, {"child": own}, base, {"child": architecture}, times, {}, texts.sources)
    rows["child"]["before_recover"] = own.kl_nats
    evaluation = {
        **rows,
        "report_text": judged_text(base),
        "chosen": "child",
        "scenario": job.hardware.scenarios[0].name,
    }
    place.write_json(f"solutions/{name}.json", {**stored, "evaluation": evaluation})
    return evaluation


def is_small(job: Job, parent: Parent, tokens: int, length: int) -> bool:
    """Whether so many tokens, in sequences of a length, take less time in this process than workers need to start."""
    if job.cluster.address is not None or job.hardware.device != "cpu":
        return False
    return tokens * token_seconds(parent, length) < START_SECONDS


def model_named(place: Workspace, parent: Parent, name: str) -> TrainedModel:
    """`child` or a baseline as it was recovered, or a stored solution as assembled.

    Raises:
        UserError: there is no such solution.
    """
    run = place.read_json("run.json")
    if name in run["models"]:
        return recovered_model(run, name)
    architecture = blocks_of(find_solution(place, name)["architecture"])
    return TrainedModel(architecture, blob_of_solution(place, parent, architecture))


def recovered_model(run: Mapping[str, Any], name: str) -> TrainedModel:
    """One of the models of run.json."""
    return TrainedModel.from_told({**run["models"][name], "architecture": run["evaluation"][name]["architecture"]})


def blob_of_solution(place: Workspace, parent: Parent, architecture: Blocks) -> str:
    """The digest of a solution's weights as assembled from parent and library, put into the store."""
    arguments = {"parent": str(parent.folder), "store": place.url, "dtype": "float32", "device": "cpu"}
    return assembled_blob(worker_source(arguments, library_of_workspace(place)), architecture)


def job_of(place: Workspace) -> tuple[Job, Parent]:
    """The job that last finished on a workspace, and its parent; UserError before one has."""
    run = place.find_json("run.json")
    if run is None or "job" not in run:
        raise UserError(f"workspace: {place.url} has no finished search; let `inlay run` finish")
    job = Job.from_dict(run["job"], folder=run["folder"])
    with unpacked(open_job_parent(job), unpacked_place(job, place)) as parent:
        if is_registered(job.parent):  # an alias may have moved since
            place.check_parent(parent.digest, job.parent)
        return job, parent


def inputs_of_workspace(place: Workspace) -> str:
    """The digest of what the parent's matrices read; "" where the search chose no formats."""
    return str(place.find_json(INPUTS_FILE) or "")


def library_of_workspace(place: Workspace) -> Library:
    """The block library's digests."""
    held: Mapping[str, Mapping[str, str]] = place.read_json("library.json")
    return Library({int(layer): digests for layer, digests in held.items()})
