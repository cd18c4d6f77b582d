"""What is known of a job of a cluster, and the order in which jobs that wait begin.

The order is by priority, and within one first come, first served. Two jobs of one workspace run one after the other.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
OWNER, PRIORITY, WORKSPACE = "owner", "priority", "workspace"
"""Among the details."""
PRIORITIES = ("low", "normal", "high")


@dataclass(frozen=True)
class JobInfo:
    """What the job server knows of a job; times are seconds of the epoch."""

    job_id: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    exit_code: int | None
    submitted: float | None
    ended: float | None
    tags: dict[str, str]
    details: dict[str, str]
    """What the submitter noted: workspace, owner, priority, tracking, versions."""
    environment: dict[str, str] = field(repr=False)
    """The variables that it was submitted with."""
    at_gate: bool = False
    """Whether it is PENDING though Ray has started it: it waits itself until the jobs before it have begun."""
    before: int | None = None
    """How many other jobs begin before it; None unless it is PENDING."""

    @property
    def is_over(self) -> bool:
        return self.state in ENDED

    @property
    def owner(self) -> str:
        """The account that submitted it; empty where that noted none."""
        return self.details.get(OWNER, "")

    @property
    def priority(self) -> str:
        """`low`, `normal` or `high`; empty for what inlay did not submit, which waits for no turn."""
        noted = self.details.get(PRIORITY, "")
        return noted if noted in PRIORITIES else ""

    @property
    def workspace(self) -> str:
        """One spelling of it; its links are not followed, since they are those of other machines."""
        place = self.details.get(WORKSPACE, "")
        return place.rstrip("/") if "://" in place or not place else posixpath.normpath(place)


def ahead_of(job: JobInfo, jobs: Sequence[JobInfo]) -> list[JobInfo]:
    """Return those that wait too and come before it, in their order."""
    return sorted((j for j in jobs if j.state == "PENDING" and j.priority and _rank(j) < _rank(job)), key=_rank)


def holder_of(job: JobInfo, jobs: Sequence[JobInfo]) -> JobInfo | None:
    """Return the job that runs on its workspace; None without one."""
    return next((j for j in _running(jobs) if j.job_id != job.job_id and j.workspace == job.workspace), None)


def may_begin(job: JobInfo, jobs: Sequence[JobInfo], slots: int) -> bool:
    """Whether it is the turn of a job at the gate, where `slots` run at once; 0 is as many as there are.

    Of its own priority only those count that are at the gate too: what Ray has not started yet waits for one of them.
    Who waits for a workspace lets others pass.
    """
    if (slots and len(_running(jobs)) >= slots) or holder_of(job, jobs) is not None:
        return False
    ahead = (j for j in ahead_of(job, jobs) if j.at_gate or j.priority != job.priority)
    return all(holder_of(other, jobs) is not None for other in ahead)


def _running(jobs: Sequence[JobInfo]) -> list[JobInfo]:
    return [job for job in jobs if job.state == "RUNNING" and job.priority]


def _rank(job: JobInfo) -> tuple[int, float, str]:
    priority = PRIORITIES.index(job.priority) if job.priority else 0
    return -priority, job.submitted or 0.0, job.job_id
