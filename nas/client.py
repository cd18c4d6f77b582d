"""A cluster from Python: what the verbs `submit`, `status`, `logs`, `wait`, `stop` and `resubmit` do, as objects."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inlay.nas.errors import InlayError, JobFailedError, UserError

if TYPE_CHECKING:
    from inlay.cluster.job_info import JobInfo
    from inlay.cluster.jobs import JobServer
    from inlay.nas.job import Job

_PATIENCE_SECONDS = 30.0
_PENDING_SECONDS = 3.0
"""A job that has not begun by then waits for its turn; Ray takes it from the queue when that comes."""
_NUMBERED = re.compile(r"-[0-9a-f]{8}$")


class Client:
    """A cluster's job server.

    Args:
        address: such as `http://head.example:8265`; default RAY_API_SERVER_ADDRESS, else the one of `inlay up`.
        allow_insecure: lets a server beyond this machine be spoken to over http without a token.

    Raises:
        UserError: no server is named, or the address is none.
    """

    def __init__(self, address: str | None = None, *, allow_insecure: bool = False) -> None:
        from inlay.cluster.jobs import JobServer

        with user_errors():
            self._server = JobServer(address, allow_insecure=allow_insecure)

    def submit(
        self,
        job: Job | str | os.PathLike[str],
        *,
        workspace: str | os.PathLike[str] | None = None,
        job_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> JobHandle:
        """Submits a job, as its text: parent, texts and workspace are read where it names them, on the cluster.

        Args:
            job: a job, or the path of a job file.
            workspace: a folder or URL that all nodes share; default `<job stem>.search` beside the job file.
            job_id: default its name and a number.
            tags: names and values for `inlay list --tag`.

        Raises:
            UserError: the job, an id or a tag is wrong, or the cluster can never run it.
            ClusterError: the server does not answer as it should.
        """
        from inlay.cluster.ids import new_job_id, parse_job_id, parse_tags
        from inlay.nas.driver import submission
        from inlay.nas.job import Job
        from inlay.nas.loop.resources import resources_of

        loaded = job if isinstance(job, Job) else Job.load(job)
        server = self._server
        with user_errors():
            identifier = parse_job_id(job_id) if job_id is not None else new_job_id(loaded.default_workspace().stem)
            named = parse_tags([f"{name}={value}" for name, value in (tags or {}).items()])
            order = submission(loaded, None if workspace is None else os.fspath(workspace), identifier, named)
            theirs = server.versions()["ray"]
            if theirs != order.details["ray"]:
                raise UserError(
                    f"the cluster at {server.url} has Ray {theirs}, this side has {order.details['ray']}; use the same"
                )
            server.check_share(resources_of(loaded))
            try:
                server.check_together(resources_of(loaded), loaded.recover.workers)
            except ValueError as error:
                raise UserError(f"recover.workers: {error}; lower it") from error
            server.submit(identifier, order.entrypoint, order.environment, named, order.details)
            jobs = server.jobs()  # now, since of two that are submitted at once one must learn of the other
        own = next((listed for listed in jobs if listed.job_id == identifier), None)
        others = [j for j in jobs if own and j is not own and not j.is_over and j.workspace == own.workspace]
        return JobHandle(server, identifier, tuple(map(_shares, others)))

    def resubmit(self, job_id: str, *, new_id: str | None = None) -> JobHandle:
        """Submits the same job again, with its tags and on its workspace, where it goes on.

        Args:
            job_id: of a job that the cluster still lists.
            new_id: default the old one's name and another number.

        Raises:
            UserError: as `submit`; or the job was submitted by something else than inlay.
        """
        from inlay.cluster.ids import new_job_id
        from inlay.nas.job import Job

        with user_errors():
            old = self._server.job(job_id)
        values = submitted_values(old)
        return self.submit(
            Job.parse(values["job"], values["folder"], f"the job `{job_id}`"),
            workspace=values["workspace"],
            job_id=new_id if new_id is not None else new_job_id(_NUMBERED.sub("", job_id)),
            tags=old.tags,
        )

    def job(self, job_id: str) -> JobHandle:
        """The handle of a job that the cluster lists; raises UserError when it has none of that id."""
        with user_errors():
            self._server.job(job_id)
        return JobHandle(self._server, job_id)


class JobHandle:
    """A submitted job; every call asks the cluster, so a handle is never out of date.

    `notes` has what the submitter should know, a sentence each: whose job has the same workspace.
    """

    def __init__(self, server: JobServer, job_id: str, notes: tuple[str, ...] = ()) -> None:
        self.server, self.job_id, self.notes = server, job_id, notes

    def __repr__(self) -> str:
        return f"JobHandle({self.job_id!r} at {self.server.url})"

    def status(self) -> JobInfo:
        """What the cluster knows of it: `state`, `message` (what it waits for, or why it failed), times, tags."""
        with user_errors():
            return explained(self.server, self.server.job(self.job_id))

    def logs(self, tail: int | None = None) -> str:
        """What it has written so far, or the last `tail` lines of that."""
        with user_errors():
            return self.server.logs(self.job_id, tail)

    def wait(self, timeout_seconds: float | None = None) -> JobInfo:
        """Returns what `status` does once it has succeeded.

        Raises:
            JobFailedError: it ended in another way.
            InlayError: it has not ended in time; it goes on.
        """
        with user_errors():
            job = explained(self.server, self.server.wait(self.job_id, timeout_seconds))
        if not job.is_over:
            raise InlayError(f"the job `{self.job_id}` is still {job.state} after {timeout_seconds:g} s; it goes on")
        check_succeeded(job)
        return job

    def stop(self) -> JobInfo:
        """Asks it to stop and returns it as it is then; what it finished is kept.

        Raises:
            InlayError: it has not ended half a minute later.
        """
        with user_errors():
            ((job, _),) = stop_jobs(self.server, [self.job_id])
        if still_goes(job):
            raise InlayError(f"the job `{self.job_id}` was asked to stop and is still {job.state}")
        return job

    def evaluation(self) -> dict[str, Any]:
        """Quality, size and speed of child, parent and baselines: `evaluation.json` of its workspace, read from here.

        Raises:
            UserError: the job did not get so far, or this side does not see its workspace.
        """
        from inlay.nas.workspace import Workspace

        job = self.status()
        place = job.details.get("workspace")
        if place is None:
            raise UserError(f"the job `{self.job_id}` names no workspace: something else than inlay submitted it")
        found = Workspace(place).last_round().find_json("evaluation.json")
        if found is None:
            raise UserError(
                f"the job `{self.job_id}` is {job.state}, and there is no evaluation.json in {place} as this side "
                "sees it; wait for it, or read it where the job ran"
            )
        return dict(found)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the ValueErrors of the cluster room, which are the user's mistakes, into user errors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def explained(server: JobServer, job: JobInfo) -> JobInfo:
    """The job with a message in our words: what it waits for, or the sentence that it failed with."""
    if job.state == "PENDING":
        return replace(job, message=server.waits_for(job))
    if job.state == "FAILED":
        lines = [line.strip() for line in server.logs(job.job_id).splitlines()]
        said = next((line.removeprefix("inlay: ") for line in reversed(lines) if line.startswith("inlay: ")), None)
        return replace(job, message=said or job.message)
    return job


def check_succeeded(job: JobInfo) -> None:
    """Raises JobFailedError, exit code 4, for a job that ended in another way; `job` is an explained one."""
    if job.state != "SUCCEEDED":
        raise JobFailedError(f"the job `{job.job_id}` is {job.state}{f': {job.message}' if job.message else ''}")


def stop_jobs(server: JobServer, job_ids: Sequence[str]) -> list[tuple[JobInfo, bool]]:
    """Asks jobs to stop, all before any is waited for; each as it is then, and False where it was over already."""
    from inlay.cluster.tracking_link import end_job_run

    asked = [(job_id, server.stop(job_id)) for job_id in job_ids]
    began = time.monotonic()
    stopped = []
    for job_id, in_time in asked:
        job = server.wait(job_id, began + _PENDING_SECONDS - time.monotonic())
        if job.state != "PENDING" or job.at_gate:
            job = server.wait(job_id, began + _PATIENCE_SECONDS - time.monotonic())
        if in_time and job.is_over:
            end_job_run(job.details.get("tracking", ""), job.details.get("experiment", ""), job_id)
        stopped.append((job, in_time))
    return stopped


def still_goes(job: JobInfo) -> bool:
    """Whether a job that `stop_jobs` gives did not heed; one that waits for its turn ends when that comes."""
    return not job.is_over and (job.state != "PENDING" or job.at_gate)


def submitted_values(job: JobInfo) -> dict[str, Any]:
    """What `inlay.nas.driver.submission` packed for a job; raises UserError where nothing of ours is with it."""
    from inlay.nas.driver import unpacked

    try:
        return unpacked(job.environment)
    except ValueError:
        text = f"the job `{job.job_id}` has no job file with it: something else than inlay submitted it"
        raise UserError(text) from None


def _shares(job: JobInfo) -> str:
    owner = f" of {job.owner}" if job.owner else ""
    return (
        f"the job `{job.job_id}`{owner} is {job.state} and has the same workspace, where one runs at a time: "
        f"the other waits for its end; stop one (`inlay stop {job.job_id}`), or name another workspace"
    )
