"""What `inlay doctor` looks at: a function a subject, each giving checks with a state, what was found, a way out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from inlay.nas.quantities import show_bytes

LIBRARIES = ("torch", "transformers", "safetensors", "ray", "mlflow", "pulp", "highspy", "numpy", "pyarrow", "fsspec")
LEAST_DISK_BYTES = 5 * 2**30
LEAST_MEMORY_BYTES = 4 * 2**30
HEALTH_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Check:
    """One finding: `ok`, `look` (works, but worth a look) or `broken`."""

    name: str
    state: Literal["ok", "look", "broken"]
    text: str


def checkup(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """All findings, in the order they matter."""
    subjects: tuple[Callable[[Mapping[str, str]], Iterator[Check]], ...] = (
        _versions, _processors, _devices, _memory, _disk, _mlflow, _ray
    )  # fmt: skip
    return [check for subject in subjects for check in subject(environment)]


def mlflow_check(uri: str) -> Check:
    """Whether an MLflow store answers: a server by its /health, a sqlite file by whether it may be written."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_SECONDS) as answer:
                state, text = ("ok", "answers") if answer.status == 200 else ("broken", f"says {answer.status}")
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            state, text = "broken", f"does not answer ({reason}); start it, or unset MLFLOW_TRACKING_URI to use a file"
        return Check("mlflow", state, f"{shown} {text}")  # type: ignore[arg-type]
    if parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///") or "mlflow.db").absolute()
        place = path if path.exists() else path.parent
        if os.access(place, os.W_OK):
            return Check("mlflow", "ok", f"{uri} ({path})")
        return Check("mlflow", "broken", f"{place} cannot be written; set MLFLOW_TRACKING_URI or go to another folder")
    return Check("mlflow", "look", f"the store {parts.scheme or uri}: is not checked here; sqlite and http are")


def ray_token_check(environment: Mapping[str, str]) -> Check:
    """What a cluster with token authentication will see of us; the token itself is never shown."""
    mode = environment.get("RAY_AUTH_MODE")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if mode == "disabled":
        return Check("ray auth", "look", "RAY_AUTH_MODE=disabled: everybody who reaches the ports may run code")
    if "RAY_AUTH_TOKEN" in environment:
        held = "a token in RAY_AUTH_TOKEN"
    elif path.exists():
        if path.stat().st_mode & 0o077:
            return Check("ray auth", "look", f"{path} can be read by others; run: chmod 600 {path}")
        held = f"a token in {path}, readable by you only"
    else:
        held = "no token yet; a local run makes one"
    if mode == "token":
        return Check("ray auth", "ok" if "no token" not in held else "look", f"RAY_AUTH_MODE=token, {held}")
    note = "a cluster of this account refuses you without RAY_AUTH_MODE=token (as: Failed to connect, after 20 s)"
    return Check("ray auth", "ok", f"RAY_AUTH_MODE is not set, {held}; {note}")


def _versions(environment: Mapping[str, str]) -> Iterator[Check]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 14)
    text = f"{platform.python_version()} at {sys.executable}"
    yield Check("python", "ok" if supported else "look", text if supported else f"{text}; 3.11 to 3.14 are tested")
    yield Check("inlay", "ok", importlib.metadata.version("inlay"))
    found = {name: _version(name) for name in LIBRARIES}
    there = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name, version in found.items() if not version]
    yield Check("libraries", "ok", there)
    if missing:
        yield Check("libraries", "broken", f"not installed: {', '.join(missing)}; run `make install` again")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processors(environment: Mapping[str, str]) -> Iterator[Check]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    text = f"{usable} CPUs"
    if quota is not None and quota < usable:
        yield Check(
            "processors", "look", f"{text}, but a quota of {quota:g}; set cluster.max_workers to {max(1, int(quota))}"
        )
    else:
        yield Check("processors", "ok", f"{text}, {platform.machine()}")


def _cpu_quota() -> float | None:
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return None


def _devices(environment: Mapping[str, str]) -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Check("devices", "ok", f"cpu ({torch.backends.cpu.get_cpu_capability()}); no CUDA device")
        return
    for index in range(torch.cuda.device_count()):
        held = torch.cuda.get_device_properties(index)
        yield Check("devices", "ok", f"cuda:{index} {held.name}, {show_bytes(held.total_memory)}")


def _memory(environment: Mapping[str, str]) -> Iterator[Check]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    held = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    free, total = held["MemAvailable"], held["MemTotal"]
    text = f"{show_bytes(free)} of {show_bytes(total)} free"
    few = free < LEAST_MEMORY_BYTES
    yield Check(
        "memory", "look" if few else "ok", f"{text}; a search wants 4 GiB, lower cluster.max_workers" if few else text
    )


def _disk(environment: Mapping[str, str]) -> Iterator[Check]:
    usage = shutil.disk_usage(Path.cwd())
    few = usage.free < LEAST_DISK_BYTES
    text = f"{show_bytes(usage.free)} free here"
    yield Check("disk", "look" if few else "ok", f"{text}; `inlay plan` says what a search needs" if few else text)


def _mlflow(environment: Mapping[str, str]) -> Iterator[Check]:
    yield mlflow_check(environment.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


def _ray(environment: Mapping[str, str]) -> Iterator[Check]:
    address = environment.get("RAY_ADDRESS")
    text = (
        f"RAY_ADDRESS={address}; a job uses it with cluster.address: auto" if address else "local, started when needed"
    )
    yield Check("ray", "ok", text)
    yield ray_token_check(environment)
