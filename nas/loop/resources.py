"""What one worker of a job takes of a cluster; read by the command line too, so without torch."""

from __future__ import annotations

from inlay.cluster.pieces import Resources
from inlay.nas.job import Job


def resources_of(job: Job) -> Resources:
    """What one worker of a job books."""
    gpus = job.cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if job.hardware.device.startswith("cuda") else 0.0
    return Resources(
        cpus=job.cluster.cpus_per_worker,
        gpus=gpus,
        memory_bytes=job.cluster.memory_per_worker or 0,
        threads=job.cluster.cpus_per_worker,
        gpu_type=job.hardware.gpu or "",
    )
