"""`inlay status`: what a job is at."""

from __future__ import annotations

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, JobIdArgument, job_server, job_values


def status_command(
    job_id: JobIdArgument,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a job's state, its stage with counts and time left, its workspace and its MLflow page."""
    from inlay.cluster.tracking_link import job_page

    with job_server(address, insecure) as server:
        job = server.job(job_id)
        progress = last_line(server.logs(job_id)) if job.state in ("RUNNING", "FAILED") else None
    details = job.details
    page = job_page(details["tracking"], details.get("experiment", ""), job_id) if details.get("tracking") else None
    values = job_values(job) | {"progress": progress, "mlflow": page}
    if as_json:
        print_json(values)
        return
    message = "" if job.state == "RUNNING" else job.message
    print(f"{job.job_id}  {job.state}")
    rows = {
        "why": message,
        "progress": progress,
        "submitted": values["submitted"],
        "ended": values["ended"],
        "workspace": values["workspace"],
        "mlflow": page,
        "tags": ", ".join(f"{name}={value}" for name, value in sorted(job.tags.items())),
    }
    for name, value in rows.items():
        if value:
            print(f"  {name:<10} {value}")


def last_line(log: str) -> str | None:
    """Return the last line of a log: the stage with its counts and time left, or how the job ended."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), None)
