"""How fast a job's workers compute and read: this machine's CPUs as measured, GPUs as their data sheets say."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from inlay.nas.families import Described, Slot, subblock_tensors
from inlay.nas.job import Job
from inlay.nas.loop.gpus import GPUS, GpuKind
from inlay.nas.modeling import build_layer, make_context
from inlay.nas.pieces.boundaries import micro_batch
from inlay.nas.pieces.piece_text import FREE_SHARE, HELD_BYTES
from inlay.nas.variants import parameters

FORWARD = 2.0
"""Operations for each number and token of a forward; a backward takes twice as many."""
BATCH_RUNS, TOKEN_RUNS = 3, 20
"""One layer of the parent is run so often on a micro-batch and on one token, and the fastest taken."""
UTILISED = 0.4
"""Of a GPU's peak, what large products of a whole step come to."""
LAYER_CALLS_SECONDS = 3e-4
"""Of one layer's kernels in eager PyTorch, one after the other: no decode step of a layer is shorter
(benchmarks/results/gpu.md)."""
READ_BYTES_PER_SECOND = 2e9
"""Of one GPU worker, from a disk or store near it."""
WORKER_SECONDS = 15.0
"""Until a new process holds a GPU and has imported what it needs; it stays for later pieces of its stage."""
SLOTS: tuple[Slot, Slot] = ("attention", "ffn")


class Machine(Protocol):
    """One worker's."""

    @property
    def read_seconds_per_byte(self) -> float:
        """What reading takes beside computing."""

    @property
    def worker_seconds(self) -> float:
        """What a worker takes before it begins with its first piece."""

    @property
    def held_bytes(self) -> float:
        """What a worker holds of hidden states."""

    def operations_per_second(self, length: int) -> float:
        """Of products, on sequences of a length."""

    def step_seconds(self, length: int) -> float:
        """Of one layer of the parent on one token of one sequence."""


class ThisCpu:
    """A thread of this machine: one layer is timed for some tenths of a second, by its thread's CPU time, so that other
    work on the machine changes nothing. What is read comes from memory or beside the work."""

    read_seconds_per_byte = 0.0
    worker_seconds = 0.0
    held_bytes = float(HELD_BYTES)

    def __init__(self, parent: Described) -> None:
        self._parent = parent
        self._known: dict[int, LayerRate] = {}

    def operations_per_second(self, length: int) -> float:
        """Of products, on sequences of a length."""
        return self._rate(length).operations_per_second

    def step_seconds(self, length: int) -> float:
        """Of one layer of the parent on one token of one sequence."""
        return self._rate(length).step_seconds

    def _rate(self, length: int) -> LayerRate:
        if length not in self._known:
            self._known[length] = layer_rate(self._parent, length)
        return self._known[length]


@dataclass(frozen=True)
class Gpu:
    """One GPU of a kind, on its data sheet's word: nothing is run here."""

    kind: GpuKind
    parent: Described
    read_seconds_per_byte = 1 / READ_BYTES_PER_SECOND
    worker_seconds = WORKER_SECONDS

    def operations_per_second(self, length: int) -> float:
        """Of products, on sequences of any length."""
        return UTILISED * self.kind.operations_per_second

    def step_seconds(self, length: int) -> float:
        """Its weights through the GPU's memory, or the calls."""
        return max(self._layer_bytes / self.kind.bytes_per_second, LAYER_CALLS_SECONDS)

    @property
    def held_bytes(self) -> float:
        """A share of its memory."""
        return FREE_SHARE * self.kind.memory_bytes

    @cached_property
    def _layer_bytes(self) -> float:
        shape = self.parent.shape
        return shape.dtype_bytes * sum(parameters(shape.parent_entry(0, slot), slot, shape) for slot in SLOTS)


def machine_of(job: Job, parent: Described) -> Machine | None:
    """What a job's workers compute on; None where nothing is known of it."""
    if job.hardware.device == "cpu":
        return ThisCpu(parent)
    kind = GPUS.get(job.hardware.gpu or "")
    return None if kind is None else Gpu(kind, parent)


@dataclass(frozen=True)
class LayerRate:
    """What one layer of the parent does on one thread here.

    Args:
        operations_per_second: on a micro-batch of sequences of one length.
        step_seconds: for one token of one sequence.
    """

    operations_per_second: float
    step_seconds: float


def layer_rate(parent: Described, length: int) -> LayerRate:
    """Times a layer like the parent's first, its weights drawn, on a micro-batch of sequences of a length, and on one
    token."""
    shape, dtype, device = parent.shape, torch.float32, torch.device("cpu")
    attention, ffn = (shape.parent_entry(0, slot) for slot in SLOTS)
    generator, drawn = torch.Generator().manual_seed(0), {}
    for slot, entry in zip(SLOTS, (attention, ffn), strict=True):
        for name, size in subblock_tensors(shape, slot, entry).items():
            drawn[name] = torch.randn(size, generator=generator) / shape.hidden**0.5
    layer = build_layer(parent.config, 0, attention, ffn, drawn, dtype)
    torch.set_num_threads(1)

    def seconds(batch: int, tokens: int, runs: int) -> float:
        context = make_context(parent.config, batch, tokens, dtype, device, [attention])
        hidden_BSD = torch.randn(batch, tokens, shape.hidden)
        least = math.inf
        for _ in range(runs):
            start = time.thread_time()
            middle_BSD = hidden_BSD + layer.attention_update(hidden_BSD, context)
            layer.ffn_update(middle_BSD)
            least = min(least, time.thread_time() - start)
        return least

    batch = micro_batch(length)
    numbers = sum(parameters(entry, slot, shape) for entry, slot in zip((attention, ffn), SLOTS, strict=True))
    with torch.inference_mode():
        return LayerRate(
            FORWARD * batch * length * numbers / seconds(batch, length, BATCH_RUNS), seconds(1, 1, TOKEN_RUNS)
        )
