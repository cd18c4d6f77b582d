"""The gate of a cluster's jobs: a driver that Ray has started waits here until the jobs before it have begun.

Ray starts at most as many jobs of one priority as run at once, in the order in which they were submitted; they hold
`inlay_job_<priority>` of the head. Which of those that it has started begins is decided here, by the list that the job
server has; who begins holds `inlay_job`, so that never more run than there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from inlay.cluster.job_info import may_begin
from inlay.cluster.jobs import JobServer
from inlay.cluster.ray_private import remove_placement_group
from inlay.cluster.services import JOB_SLOT, turn_name

_POLL_SECONDS = 1.0
_GRANT_SECONDS = 10.0
# The head has as much of it as anybody may want: what is held where a cluster has no slots.
_HEAD = "node:__internal_head__"


def take_turn(server: JobServer, job_id: str, tell: Callable[[str], None]) -> None:
    """Wait until it is the turn of this job, and hold one of the cluster's slots for it until the job is over.

    Ray is connected. `tell` gets what is waited for, at every change. What a job that is over has held is given back by
    the next one here: it may have been killed.
    """
    told = ""
    while True:
        jobs = {job.job_id: job for job in server.jobs()}
        own = jobs.get(job_id)
        if own is None or own.state != "PENDING":
            return
        alive = {turn_name(job.job_id, job.submitted) for job in jobs.values() if not job.is_over}
        for name, group in server.turns().items():
            if name not in alive:
                remove_placement_group(group)
        slots = server.slots()
        if may_begin(own, list(jobs.values()), slots) and _hold(turn_name(job_id, own.submitted), slots):
            return
        if (now := server.waits_for(own)) != told:
            told = now
            tell(told)
        time.sleep(_POLL_SECONDS)


def _hold(name: str, slots: int) -> bool:
    """Take a slot; False where another was quicker."""
    import ray

    bundle = {JOB_SLOT: 1.0} if slots else {_HEAD: 0.001}
    group = ray.util.placement_group([bundle], name=name, lifetime="detached")
    if group.wait(_GRANT_SECONDS):
        return True
    ray.util.remove_placement_group(group)
    return False
