"""`inlay delete`: makes a cluster forget a job that is over."""

from __future__ import annotations

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import AddressOption, InsecureOption, JobIdArgument, job_server


def delete_command(
    job_id: JobIdArgument,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a job that is over from the cluster's list, with its log; its workspace and MLflow run stay."""
    with job_server(address, insecure) as server:
        server.delete(job_id)
    if as_json:
        print_json({"deleted": job_id})
    else:
        print(f"deleted {job_id}; its workspace stays")
