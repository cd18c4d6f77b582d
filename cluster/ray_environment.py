"""The environment variables that Ray reads when it starts, set for as long as it is up, and those of its workers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

# Nothing is reported anywhere, and a worker's devices stay visible to pieces that book none of them.
_RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
LOOPBACK_ONLY = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Ray has no other switch for it: without clusters, as on desktops, every port of its processes is on the loopback."""
_WORKER_VARIABLES = {
    # Ray lets workers stand back (nice 15): beside any other program they would get next to nothing of a processor.
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray's job server tells the driver of a submitted job its runtime environment."""


def worker_variables(own: Mapping[str, str]) -> dict[str, str]:
    """Every worker's variables, with `own` above them.

    What the environment of a submitted job has is left out: workers inherit it, and Ray refuses a name that is in both
    (its job server sets a priority for the job by itself).
    """
    job = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    inherited = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in {**_WORKER_VARIABLES, **own}.items() if name not in inherited}


class RayEnvironment:
    """Sets the variables of this process, and puts back what was there."""

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}

    def set(self, *, local: bool) -> None:
        """Set what is not set; with the mode of the token, which Ray sets itself, it is undone by `restore`."""
        wanted = _RAY_VARIABLES | (dict([LOOPBACK_ONLY]) if local else {})
        for name in (*wanted, "RAY_AUTH_MODE"):
            self._before.setdefault(name, os.environ.get(name))
        for name, value in wanted.items():
            os.environ.setdefault(name, value)

    def restore(self) -> None:
        """Put back what was there before `set`."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}
