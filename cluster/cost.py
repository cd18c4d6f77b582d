"""What work has held of a cluster: CPU-hours and GPU-hours, for whoever pays for them."""

from __future__ import annotations

from dataclasses import dataclass

_SECONDS = 3600.0


@dataclass(frozen=True)
class Cost:
    """CPUs and GPUs that nobody else could have, times the hours for which they were held; busy or not."""

    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    @classmethod
    def held(cls, cpus: float, gpus: float, seconds: float) -> Cost:
        """Return the cost of so many CPUs and GPUs for so many seconds."""
        return cls(cpus * seconds / _SECONDS, gpus * seconds / _SECONDS)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_hours + other.cpu_hours, self.gpu_hours + other.gpu_hours)

    def __bool__(self) -> bool:
        return self.cpu_hours > 0 or self.gpu_hours > 0
