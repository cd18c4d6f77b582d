"""`inlay stop`: ends a job, its workspace stays resumable."""

from __future__ import annotations

import sys

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, JobIdArgument, job_server, job_values
from inlay.nas.errors import InlayError

PATIENCE_SECONDS = 30.0
PENDING_SECONDS = 3.0
"""A job that has not begun by then waits for its turn; Ray takes it from the queue when that comes."""


def stop_command(
    job_id: JobIdArgument,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a job; what is finished is kept, and the same job goes on from there when it is submitted again."""
    from inlay.cluster.tracking_link import end_job_run

    with job_server(address, insecure) as server:
        stopped = server.stop(job_id)
        job = server.wait(job_id, PENDING_SECONDS)
        if job.state != "PENDING":
            job = server.wait(job_id, PATIENCE_SECONDS)
    if not job.is_over and job.state != "PENDING":
        raise InlayError(f"the job `{job_id}` was asked to stop and is still {job.state}; try `inlay status {job_id}`")
    if stopped and job.is_over:
        end_job_run(job.details.get("tracking", ""), job.details.get("experiment", ""), job_id)
    if as_json:
        print_json(job_values(job))
    elif job.state == "PENDING":
        print(f"{job_id} had not started and will not: it is STOPPED when its turn comes")
    elif stopped:
        print(f"{job_id} is {job.state}; its workspace can be resumed: {job.details.get('workspace', '')}")
    else:
        print(f"inlay: the job `{job_id}` was over already ({job.state})", file=sys.stderr)
