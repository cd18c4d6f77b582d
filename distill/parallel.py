"""Several processes that train one model: each takes its rows of every batch, and their gradients are added up.

The processes are those of torch.distributed's default group (gloo on CPUs, NCCL on GPUs). Weights are either whole in
every process, or sharded with FSDP2 (`shard`): then a process holds its rows of every tensor, and a decoder layer is
gathered only while it computes. What every process does is fixed by the number of processes, so a run repeats bit for
bit. Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from inlay.distill.settings import REDUCED_ONCE

_BUCKET_ELEMENTS = 1 << 24
"""Gradients sent at once: 64 MiB in float32, what is held beside them."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one training run, as one of them sees them; alone by default."""

    index: int = 0
    """This process, from 0."""
    count: int = 1
    """All of them, at least 1."""
    sharded: bool = False
    """Whether the weights are sharded among them, so that FSDP2 adds the gradients up."""
    spares: bool = False
    """Whether memory lacks: then no process holds whole gradients of sharded weights longer than it must."""

    def part(self, batch_BS: Tensor) -> Tensor:
        """This process's rows of a batch: consecutive ones, as many as the others' or one more.

        Raises:
            ValueError: a process would have no row, or, sharded, another number than the others.
        """
        if len(batch_BS) < self.count or (self.sharded and len(batch_BS) % self.count):
            wanted = "a multiple of it" if self.sharded else "at least as many"
            raise ValueError(f"a batch of {len(batch_BS)} sequences for {self.count} ranks: give {wanted}")
        return batch_BS.tensor_split(self.count)[self.index]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients of whole weights by their sum over the processes; FSDP2 did it for sharded ones."""
        if self.count == 1 or self.sharded:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, part in zip(bucket, torch.split(flat, sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    def adds_once(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether gradients of sharded weights are added up only at the end of a step."""
        return not self.spares and sum(parameter.numel() for parameter in parameters) <= REDUCED_ONCE

    def add(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The sum of each value over the processes, the same in all of them; `device` is where the group works."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        added: list[float] = summed.tolist()
        return added

    def agree(self, answer: bool, device: torch.device) -> bool:
        """The answer of the first process, in all of them: clocks differ."""
        return bool(self.add([float(answer and self.index == 0)], device)[0])


def world_mesh(device: torch.device) -> Any:
    """All processes of the group as the one dimension that `shard` cuts along."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(module: Any, mesh: Any, compute: torch.dtype | None = None) -> None:
    """Shards the weights of a module with FSDP2, in place, as one unit that is gathered while it computes.

    Shard a model's decoder layers first, then its ends (`shard_ends`). Gradients of the processes are added, not
    averaged.

    Args:
        module: what becomes a unit.
        mesh: from `world_mesh`.
        compute: what weights are gathered in; None: in their own type. Gradients are added up in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    reduced = None if compute is None else torch.float32
    # What comes in stays as wide as it is: the sum over layers is never rounded, as in a model that is whole.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduced, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    if hasattr(module, "forward_hidden"):
        register_fsdp_forward_method(module, "forward_hidden")


def shard_ends(model: Any, mesh: Any, compute: torch.dtype | None = None) -> None:
    """Shards what is left of a model whose layers are sharded: embedding and head each as a unit, or one where tied.

    `whole_head` gathers the head where it is used.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if compute is not None:
        embedding.register_forward_hook(lambda module, arguments, hidden: hidden.float())
    if head.weight is not embedding.weight:
        shard(embedding, mesh, compute)
        shard(head, mesh, compute)
    shard(model, mesh, compute)


@contextmanager
def whole_head(model: Any) -> Iterator[Tensor]:
    """The head [V, D] of a model, gathered where it is sharded, until its gradient, if it gets any, is formed."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        yield model.head_VD
        return
    whole: Any = model
    head = whole.get_output_embeddings()
    unit = head if isinstance(head, FSDPModule) else model
    unit.unshard()
    yield whole.head_VD
    # Where it is tied its unit has begun its backward, which ends with giving it back.
    if unit is not model or not (torch.is_grad_enabled() and whole.head_VD.requires_grad):
        unit.reshard()


def row_counts(rows: int, processes: int) -> list[int]:
    """How many rows of a tensor each process holds where it is sharded."""
    most = -(-rows // processes)
    return [max(0, min(most, rows - index * most)) for index in range(processes)]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its own rows when it is sharded, else all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, which every process asks for at once where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether the processes hold different rows of it."""
    return isinstance(tensor, DTensor)


@cache
def host_group() -> Any:
    """A group of all processes that works on CPUs, made by all of them at once, for other threads than training's."""
    return dist.new_group(backend="gloo")


def on_host(tensor: Tensor) -> Tensor:
    """A copy on the host; each process has its own rows where it is sharded."""
    return rows_of(local(tensor.detach()).to("cpu", copy=True), tensor)


def rows_of(own: Tensor, like: Tensor) -> Tensor:
    """A tensor laid out as `like`, of which a process gives on the host what it holds of it."""
    if not isinstance(like, DTensor):
        return own
    return DTensor.from_local(
        own, _host_mesh(), like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@cache
def _host_mesh() -> DeviceMesh:
    return DeviceMesh.from_group(host_group(), "cpu")


def whole_number(value: Tensor) -> float:
    """A scalar as a float, added up over the processes where they hold parts of it."""
    return float(whole(value))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in groups of at most the bucket's size or of one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
