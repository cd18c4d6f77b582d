"""`inlay down`: ends what `inlay up` started."""

from __future__ import annotations

from inlay.nas.cli.output import JsonOption, print_json
from inlay.nas.cli.service_shared import FolderOption


def down_command(folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """End the services of `inlay up` and the jobs that run on them; workspaces stay and can be resumed."""
    from inlay.cluster.services import services_folder, stop_services

    place = services_folder(folder)
    services = stop_services(place)
    ended = [name for name in ("ray", "mlflow") if getattr(services, name) is not None]
    if as_json:
        print_json({"ended": ended, "folder": str(place)})
    else:
        print(f"ended {' and '.join(ended)}" if ended else f"nothing runs in {place}")
