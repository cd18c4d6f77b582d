"""The driver of a submitted job: what travels with the job, and what runs on the cluster when its turn comes.

The job travels as its own text in an environment variable, so nothing is uploaded; paths mean what they mean on the
nodes. The job server keeps the variable, and `unpacked` gives the text back.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import sys
import traceback
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.cluster.errors import ClusterError
from inlay.nas.errors import InlayError, UserError

if TYPE_CHECKING:
    from inlay.nas.job import Job
    from inlay.nas.stages.run import RunResult

VARIABLE = "INLAY_SUBMISSION"
# One environment variable holds at most 128 KiB, and Ray puts it into another one once more.
LARGEST_BYTES = 60_000
LARGEST_UNPACKED = 4_000_000
"""A job file has at most 500 kB, of which JSON may make some times as much."""


@dataclass(frozen=True)
class Submission:
    """What a job server is given."""

    entrypoint: str
    environment: dict[str, str]
    details: dict[str, str]


def submission(job: Job, workspace: str | None, job_id: str, tags: Mapping[str, str]) -> Submission:
    """Return what runs `job` on a cluster; raises UserError for a job that is too large to travel."""
    from inlay.cluster.account import account_name
    from inlay.cluster.jobs import OWNER
    from inlay.cluster.tracking import JOB_TAG, TAGS_VARIABLE
    from inlay.cluster.tracking_origin import USER_TAG
    from inlay.nas.workspace import check_workspace_url

    versions = {
        "inlay": importlib.metadata.version("inlay"),
        "ray": importlib.metadata.version("ray"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    place = str(workspace) if workspace is not None else str(job.default_workspace())
    check_workspace_url(place)
    if "://" not in place:
        place = str(Path(place).expanduser().absolute())
    values = {"job": job.text, "folder": str(job.folder), "workspace": place, "versions": versions}
    values["job_id"] = job_id
    packed = base64.b64encode(zlib.compress(json.dumps(values).encode(), 9)).decode()
    if len(packed) > LARGEST_BYTES:
        raise UserError(f"the job is {len(packed)} bytes long when packed, and at most {LARGEST_BYTES} can travel")
    all_tags = {**tags, JOB_TAG: job_id, USER_TAG: account_name()}
    return Submission(
        # `inlay up` says which Python it runs on; on other clusters it is the one of the path.
        entrypoint='exec "${INLAY_PYTHON:-python}" -m inlay.nas.driver',
        environment={VARIABLE: packed, TAGS_VARIABLE: json.dumps(all_tags)},
        details=versions
        | {"workspace": place, "experiment": job.tracking.experiment, "tracking": _tracking(job)}
        | {OWNER: account_name()},
    )


def unpacked(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what `submission` packed: `job` (its text), `folder`, `workspace`, `versions`, `job_id`.

    Raises ValueError where that is not there, or is no more than looks like it.
    """
    content = base64.b64decode(environment.get(VARIABLE, ""), validate=True)
    try:
        values = json.loads(zlib.decompressobj().decompress(content, LARGEST_UNPACKED))
    except (zlib.error, RecursionError) as error:
        raise ValueError(f"{VARIABLE} is damaged: {error}") from None
    texts = [values.get(name) for name in ("job", "folder", "workspace", "job_id")] if isinstance(values, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts) or not isinstance(values.get("versions"), dict):
        raise ValueError(f"{VARIABLE} does not hold a job")
    return dict(values)


def main() -> int:
    """Run the submitted job here, on a node of the cluster; every failure is one sentence in its log, the last one."""
    try:
        values = unpacked(os.environ)
        check_versions(values["versions"])
        run(values)
    except InlayError as error:
        return _say(str(error), error.exit_code)
    except ClusterError as error:
        return _say(str(error), InlayError.exit_code)
    except SystemExit as error:  # what SIGTERM becomes while Ray is up
        return _say("stopped; what is finished is kept, the same job goes on from there", int(error.code or 0))
    except Exception as error:
        traceback.print_exc()
        return _say(f"unexpected error ({type(error).__name__}: {error}); its traceback is above", 1)
    return 0


def _say(text: str, code: int) -> int:
    print(f"inlay: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def check_versions(theirs: Mapping[str, str]) -> None:
    """Raise UserError unless inlay, Ray and Python here are those of the submitting side."""
    here = {
        "inlay": importlib.metadata.version("inlay"),
        "ray": importlib.metadata.version("ray"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    for name, version in here.items():
        if theirs[name] != version:
            raise UserError(f"the job was submitted with {name} {theirs[name]}, this node has {version}; use the same")


def run(values: dict[str, Any]) -> None:
    """Check that every node can use what the job names, then run the job on this cluster."""
    from inlay.nas.job import Job
    from inlay.nas.report.progress import Reporter
    from inlay.nas.stages.on_end import told_on_end
    from inlay.nas.stages.rounds import run_rounds

    job, workspace, job_id = Job.parse(values["job"], values["folder"]), values["workspace"], values["job_id"]
    with Reporter() as reporter:

        def work() -> RunResult:
            _check_nodes(job, workspace, values["versions"]["inlay"])
            return run_rounds(job, workspace, reporter, name=f"the job {job_id}", address="auto")

        reporter.summary(told_on_end(job, workspace, job_id, reporter.warning, work).to_dict())


def _check_nodes(job: Job, workspace: str, version: str) -> None:
    """Raise UserError unless every node can use what the job names."""
    from inlay.cluster.probe import probe_nodes
    from inlay.cluster.runtime import ClusterSettings, connect

    scratch = job.resolve(job.cluster.scratch) if job.cluster.scratch else None
    with connect(ClusterSettings(workers=1, address="auto")) as cluster:
        problems = probe_nodes(cluster, named_paths(job), workspace, version, scratch)
    if problems:
        raise UserError("; ".join(problems))


def named_paths(job: Job) -> list[str]:
    """Return the local paths that a job reads."""
    texts = [source.path for text in (job.data.distill, job.data.validate) for source in text.path if source.weight]
    named = [job.parent, job.original, *texts, job.hardware.costs]
    paths = [job.resolve(path) for path in named if path is not None]
    return [path for path in paths if Path(path).is_absolute()]


def _tracking(job: Job) -> str:
    """Return the MLflow server that the job will write to, as far as this side can know."""
    from inlay.cluster.services import find_services, services_folder
    from inlay.cluster.urls import redacted

    if job.tracking.uri is not None:
        return redacted(job.tracking.uri)
    mlflow = find_services(services_folder()).mlflow
    return mlflow.url if mlflow is not None else ""


if __name__ == "__main__":
    raise SystemExit(main())
