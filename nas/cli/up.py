"""`inlay up`: a Ray head with its job server and an MLflow server on this machine."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import FolderOption
from inlay.nas.client import user_errors
from inlay.nas.errors import UserError


def up_command(
    folder: FolderOption = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs to offer; default: all.")] = None,
    jobs_at_once: Annotated[
        int | None, typer.Option(min=1, help="Jobs that run together; default: one for every two CPUs.")
    ] = None,
    mlflow_store: Annotated[
        str | None, typer.Option(help="Database URL of MLflow, or $INLAY_MLFLOW_STORE; default: sqlite in the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start Ray with its job server and MLflow here, on the loopback, with a token; what runs already is left alone."""
    from inlay.cluster.services import ServiceSettings, services_folder, start_services
    from inlay.cluster.urls import has_password

    if mlflow_store is not None and has_password(mlflow_store):
        raise UserError(
            "--mlflow-store: the URL has a password in it, and a command line is seen by everybody on this machine; "
            "set INLAY_MLFLOW_STORE instead"
        )

    settings = ServiceSettings(
        folder=services_folder(folder),
        cpus=cpus,
        jobs_at_once=jobs_at_once,
        mlflow_store=mlflow_store or os.environ.get("INLAY_MLFLOW_STORE"),
    )
    with user_errors():
        services = start_services(settings, lambda note: print(note, file=sys.stderr, flush=True))
    assert services.ray is not None
    assert services.mlflow is not None
    values = {
        "job_server": services.ray.url,
        "ray_address": services.ray.address,
        "mlflow": services.mlflow.url,
        "logs": str(services.ray.log.parent),
        "folder": str(settings.folder),
    }
    if as_json:
        print_json(values)
        return
    print(f"jobs       {values['job_server']}")
    print(f"mlflow     {values['mlflow']}")
    print(f"logs       {values['logs']}")
    print("The dashboard, at `jobs`, asks for the token in ~/.ray/auth_token.")
    print("Submit a search with `inlay submit JOB`; `inlay down` ends all of this.")
