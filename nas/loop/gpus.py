"""Kinds of GPUs that a job may name, as their makers' data sheets describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuKind:
    """From its maker's data sheet.

    Args:
        operations_per_second: in bfloat16, dense, at its peak.
        bytes_per_second: of its memory.
        memory_bytes: that it has.
    """

    operations_per_second: float
    bytes_per_second: float
    memory_bytes: float


GPUS: Mapping[str, GpuKind] = {
    "L4": GpuKind(121e12, 300e9, 24e9),
    "A10G": GpuKind(70e12, 600e9, 24e9),
    "L40S": GpuKind(362e12, 864e9, 48e9),
    "A100-40G": GpuKind(312e12, 1555e9, 40e9),
    "A100-80G": GpuKind(312e12, 2039e9, 80e9),
    "A100": GpuKind(312e12, 1555e9, 80e9),
    "H100": GpuKind(989e12, 3350e9, 80e9),
    "H200": GpuKind(989e12, 4800e9, 141e9),
}
"""By Ray's names, SXM modules where there are several; of an A100 whose size is not named the slower memory, and as
much of it as there may be."""
