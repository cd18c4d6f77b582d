"""`inlay status`: what a job is at."""

from __future__ import annotations

from dataclasses import asdict

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, JobIdArgument, job_server, job_values
from inlay.nas.client import explained


def status_command(
    job_id: JobIdArgument,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a job's state, its stage and what that is doing, the time left, its workspace and its MLflow page."""
    from inlay.cluster.cost import Cost
    from inlay.cluster.tracking_link import job_page
    from inlay.nas.report.sentences import cost_words, read_costs, read_progress

    with job_server(address, insecure) as server:
        job = explained(server, server.job(job_id))
        log = "" if job.state == "PENDING" else server.logs(job_id)
    progress = read_progress(log) if job.state == "RUNNING" else None
    costs = read_costs(log)
    whole = sum(costs.values(), Cost())
    details = job.details
    page = job_page(details.get("tracking", ""), details.get("experiment", ""), job_id)
    cost = {**asdict(whole), "stages": {name: asdict(each) for name, each in costs.items()}} if costs else None
    values = job_values(job) | {"progress": progress, "cost": cost, "mlflow": page}
    if as_json:
        print_json(values)
        return
    stage, _, search = progress["line"].partition(" · search ") if progress else ("", "", "")
    number = (progress and progress["round"]) or ""
    print(f"{job.job_id}  {job.state}")
    rows = {
        "why": job.message if job.state in ("PENDING", "FAILED") else "",
        "stage": stage.removesuffix(f" · {number}") if number else stage,
        "search": ", ".join(filter(None, (number, search.partition(" · ")[0]))),
        "cost": cost_words(whole) if costs else "",
        "": "; ".join(f"{name} {cost_words(each)}" for name, each in costs.items()),
        "priority": job.priority if job.priority != "normal" else "",
        "submitted": values["submitted"],
        "ended": values["ended"],
        "owner": values["owner"],
        "workspace": values["workspace"],
        "mlflow": page,
        "tags": ", ".join(f"{name}={value}" for name, value in sorted(job.tags.items())),
    }
    for name, value in rows.items():
        if value:
            print(f"  {name:<10} {value}")
