"""What a search takes of the machine that it is driven from, in MLflow's own names, so that its page shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

SECONDS = 10.0
"""Between two points, as MLflow's own monitor has it."""


class SystemMetrics:
    """A thread that tells processor, memory, disk, network and GPUs every `SECONDS`, as metrics `system/...`.

    MLflow's own monitor sends by itself, and what it cannot send is lost; this one says it to `tell`, which is a
    tracker's, so that nothing waits for a server.

    Args:
        tell: takes the metrics and their step.
        begun: when the search began, in seconds since 1970: steps are seconds since then, also of one that goes on.
    """

    def __init__(self, tell: Callable[[Mapping[str, float], int], None], begun: float) -> None:
        self._tell, self._begun = tell, begun
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="inlay-system-metrics")
        self._thread.start()

    def end(self) -> None:
        """Tell nothing more."""
        self._ended.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        if self._ended.wait(SECONDS):  # meanwhile the tracker's own thread imports mlflow
            return
        monitors = _monitors()
        while not self._ended.wait(SECONDS):
            found: dict[str, float] = {}
            for monitor in monitors:
                with suppress(Exception):  # what a container hides, or a GPU that is gone
                    monitor.collect_metrics()
                    found |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
            if not self._ended.is_set():
                self._tell({f"system/{name}": value for name, value in found.items()}, int(time.time() - self._begun))


def _monitors() -> list[Any]:
    import psutil  # type: ignore[import-untyped]
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # the first answer of a process is always 0
    kinds: tuple[Callable[[], Any], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
    monitors = []
    for kind in kinds:
        with suppress(Exception):  # no nvidia-ml-py, no GPU, no network: the libraries raise errors of their own
            monitors.append(kind())
    return monitors
