"""The local services of `inlay up`: a Ray head with its job server and dashboard, and an MLflow server, on the
loopback.

One folder holds their state, logs and data; starting them again only starts what does not run. Token authentication is
on.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from inlay.cluster.capacity import live_resources, usable_cpus
from inlay.cluster.errors import ClusterError
from inlay.cluster.http import HttpError, is_healthy, request_json
from inlay.cluster.job_info import PRIORITIES
from inlay.cluster.processes import Spawned, end, free_port, spawn
from inlay.cluster.ray_environment import LOOPBACK_ONLY
from inlay.cluster.ray_token import protect_token, ray_authorization

_MIB = 1 << 20
# Ray's sockets lie below its folder, and the path of a socket has at most 107 bytes.
_LONGEST_RAY_FOLDER = 40
JOB_SLOT = "inlay_job"
"""Ray's name for the right to run: a head has as many as jobs run at once."""
TURN = "inlay turn "


@dataclass(frozen=True)
class ServiceSettings:
    """What `inlay up` starts."""

    folder: Path
    """State, logs and MLflow's data."""
    cpus: int | None = None
    """CPUs of the Ray head; None is those that this process may use."""
    jobs_at_once: int | None = None
    """Jobs that run together, the others wait; None is one for every two CPUs, at least one."""
    mlflow_store: str | None = None
    """Database of MLflow, such as postgresql://user:password@host/name; None is an sqlite file in the folder."""
    patience_seconds: float = 180.0
    """How long a service may take to answer."""


@dataclass(frozen=True)
class Service:
    """One running service."""

    process: Spawned
    url: str
    """Dashboard and job server of Ray, or MLflow's pages."""
    log: Path
    address: str = ""
    """Of Ray's own protocol, for `cluster.address`; empty for MLflow."""


@dataclass(frozen=True)
class Services:
    """What runs."""

    ray: Service | None
    mlflow: Service | None


def job_token(priority: str) -> str:
    """Return Ray's name for the right of a job of this priority to be started, and to wait for its turn."""
    return f"{JOB_SLOT}_{priority}"


def job_resources(jobs_at_once: int) -> dict[str, int]:
    """Return what a head has where so many jobs run at once."""
    return dict.fromkeys((JOB_SLOT, *map(job_token, PRIORITIES)), jobs_at_once)


def turn_name(job_id: str, submitted: float | None) -> str:
    """Return the name of what holds a job's turn; a job of the same id that was deleted had another."""
    return f"{TURN}{job_id} {round((submitted or 0) * 1000)}"


def services_folder(given: str | Path | None = None) -> Path:
    """Return the folder of the services: the given one, INLAY_SERVICES, or `inlay` in the account's state folder."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Path(given or os.environ.get("INLAY_SERVICES") or state / "inlay").expanduser().absolute()


def start_services(settings: ServiceSettings, on_note: Callable[[str], None] = lambda text: None) -> Services:
    """Start what does not run yet and wait until all answers.

    Raises ClusterError naming the log of what did not, and what runs all the same.
    """
    with _one_at_a_time(settings.folder):
        found = find_services(settings.folder)
        ray, mlflow = found.ray, found.mlflow
        _end_leftovers(settings.folder, found)
        if mlflow is None:
            on_note("starting MLflow")
            mlflow = _start_mlflow(settings)
            _write_state(settings.folder, Services(ray, mlflow))
            _wait(mlflow, "MLflow", settings, lambda url: is_healthy(f"{url}/health"))
        if ray is None:
            on_note("starting Ray")
            try:
                ray = _start_ray(settings, mlflow.url)
                _write_state(settings.folder, Services(ray, mlflow))
                _wait(ray, "Ray", settings, _ray_answers)
            except ClusterError as error:
                runs = f"MLflow runs at {mlflow.url}: the same command goes on from there, and `inlay down` ends it"
                raise ClusterError(f"{error}; {runs}") from error
    return Services(ray, mlflow)


def stop_services(folder: Path) -> Services:
    """End the services of `folder` with everything they started, and return what ran; nobody else's are touched."""
    with _one_at_a_time(folder):
        services = find_services(folder)
        _end_leftovers(folder, services)
        for service in (services.ray, services.mlflow):
            if service is not None:
                end(service.process)
        _state_path(folder).unlink(missing_ok=True)
    return services


def find_services(folder: Path) -> Services:
    """Return the services of `folder` whose processes run."""
    alive = {name: service for name, service in _known_services(folder).items() if service.process.alive}
    return Services(alive.get("ray"), alive.get("mlflow"))


def _known_services(folder: Path) -> dict[str, Service]:
    try:
        state = json.loads(_state_path(folder).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {name: _service(state[name]) for name in ("ray", "mlflow") if state.get(name)}


def _end_leftovers(folder: Path, alive: Services) -> None:
    """End what a service whose first process was killed has left: it would hold ports and CPUs for ever."""
    for service in _known_services(folder).values():
        if service not in (alive.ray, alive.mlflow):
            end(service.process)


def _start_mlflow(settings: ServiceSettings) -> Service:
    port = free_port(5000)
    store = settings.mlflow_store or f"sqlite:///{settings.folder}/mlflow.db"
    environment = os.environ | {
        # By the environment and not by an option: a database's password must not be in the list of processes.
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": str(settings.folder / "mlartifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = settings.folder / "logs" / "mlflow.log"
    return Service(spawn(command, environment, log, umask=0o077), f"http://127.0.0.1:{port}", log)


def _start_ray(settings: ServiceSettings, tracking_uri: str) -> Service:
    cpus = settings.cpus or usable_cpus()
    port, dashboard_port = free_port(6379), free_port(8265)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "8",
        "RAY_JOB_START_TIMEOUT_SECONDS": str(30 * 24 * 3600),  # Ray fails a job that waits longer for its turn
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "INLAY_PYTHON": sys.executable,
        LOOPBACK_ONLY[0]: LOOPBACK_ONLY[1],
    }
    environment.pop("RAY_ADDRESS", None)
    protect_token()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--port", str(port), "--num-cpus", str(cpus), "--object-store-memory", str(200 * _MIB)]
    command += ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
    # The agent opens its port seconds later and serves no jobs where another has taken it: it is to choose for itself.
    command += ["--dashboard-agent-listen-port", "0", "--temp-dir", str(ray_folder(settings.folder))]
    command += ["--resources", json.dumps(job_resources(settings.jobs_at_once or max(cpus // 2, 1)))]
    log = settings.folder / "logs" / "ray.log"
    process = spawn(command, environment, log)
    return Service(process, f"http://127.0.0.1:{dashboard_port}", log, f"127.0.0.1:{port}")


def ray_folder(folder: Path) -> Path:
    """Return where Ray keeps its session, made where it is not there yet: sockets have short paths.

    Raises ClusterError for a folder that is not this account's alone: its owner could be anybody on Ray's sockets.
    """
    path = folder / "ray"
    if len(str(path)) > _LONGEST_RAY_FOLDER:
        path = Path(tempfile.gettempdir()) / f"inlay-{os.getuid()}"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ClusterError(
            f"{path} is not a folder of this account alone, and Ray would keep its sockets there; have it removed, or "
            "name a folder with a shorter path by --folder or INLAY_SERVICES"
        )
    path.chmod(0o700)
    return path


def _wait(service: Service, name: str, settings: ServiceSettings, answers: Callable[[str], bool]) -> None:
    deadline = time.monotonic() + settings.patience_seconds
    while not answers(service.url):
        if not service.process.alive or time.monotonic() > deadline:
            end(service.process)
            reason = "ended" if time.monotonic() <= deadline else f"did not answer in {settings.patience_seconds:g} s"
            raise ClusterError(f"{name} {reason} while starting; its log is {service.log}")
        time.sleep(0.2)


def _ray_answers(url: str) -> bool:
    """Tell whether jobs can be submitted; the job server answers seconds before it knows its node and the job slots."""
    paths = ("/api/version", "/api/jobs/", "/api/v0/nodes")
    try:
        *_, nodes = (request_json("GET", f"{url}{path}", authorization=ray_authorization()) for path in paths)
        return any(node.get(JOB_SLOT) for node in live_resources(nodes))
    except (HttpError, KeyError, TypeError):
        return False


def _service(state: dict[str, object]) -> Service:
    process = Spawned(**state["process"])  # type: ignore[arg-type]
    return Service(process, str(state["url"]), Path(str(state["log"])), str(state["address"]))


def _state_path(folder: Path) -> Path:
    return folder / "services.json"


def _write_state(folder: Path, services: Services) -> None:
    state = {"schema": 1, **asdict(services)}
    beside = _state_path(folder).with_suffix(".new")
    beside.write_text(json.dumps(state, indent=1, default=str))
    beside.chmod(0o600)
    beside.replace(_state_path(folder))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one `up` or `down` of a folder work at a time; the kernel lets go when its process ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "services.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
