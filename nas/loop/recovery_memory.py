"""What a rank holds while it recovers a model, from shapes alone, and whether its worker has as much.

Counted is what grows with the model: weights, their gradients, moments and best copies, what is gathered of a sharded
model, and what the layers leave for the backward. Libraries and allocators come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, Final

from inlay.cluster.capacity import usable_memory
from inlay.distill.settings import MICRO_TOKENS, REDUCED_ONCE
from inlay.nas.errors import UserError
from inlay.nas.families import Described, Entry, Shape, subblock_tensors
from inlay.nas.job import Job
from inlay.nas.loop.gpus import GPUS
from inlay.nas.loop.search import compute_dtype
from inlay.nas.modeling.subblock_inlay import SLOTS
from inlay.nas.quantities import show_bytes
from inlay.nas.variants import ends_parameters, parameters, variants_of

MOST_RANKS: Final = 1024
USED: Final = 0.8
"""Of a worker's memory, what several models that are trained together may take."""
_WIDTHS: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
Entries = tuple[Mapping[Any, Entry], ...]
"""What stands in each layer, by slot."""


@dataclass(frozen=True)
class Recovery:
    """One way to recover a child of a parent.

    Args:
        parent: who is learnt from.
        child: the shape that its entries are of.
        entries: the child's layers.
        dtype: what the parent computes in.
        trains_all: whether all weights of the child are trained; else the least that can be, none.
        ranks: that train it together.
        sharded: whether they share the weights.
        tokens: worked on at once.
        parts: of a step, one after the other.
        on_gpu: then best copies lie elsewhere.
        twice: whether layers are computed again in the backward, so that what one needs in between is held of one.
    """

    parent: Shape
    child: Shape
    entries: Entries
    dtype: str
    trains_all: bool
    ranks: int
    sharded: bool
    tokens: int
    parts: int
    on_gpu: bool
    twice: bool

    def held(self) -> dict[str, int]:
        """Bytes of each part, on one rank."""
        width, narrow = _WIDTHS[self.dtype], 4 if self.dtype == "float32" else 2
        share = self.ranks if self.sharded else 1
        child = _numbers(self.child, self.entries)
        trained = child if self.trains_all else 0
        found = {
            "parent": -(-_numbers(self.parent, _own(self.parent)) * width // share),
            "weights": -(-4 * child // share),
            "gradients": -(-4 * trained // share),
            "moments": -(-8 * trained // share),
            "best copy": 0 if self.on_gpu else -(-4 * trained // share),
        }
        if self.sharded:
            # One layer of each model and the ends of one, as they are computed with, and a layer's gradients.
            ends = ends_parameters(self.child)
            layer = max(_layer(self.child, entries) for entries in self.entries)
            theirs = max(_layer(self.parent, entries) for entries in _own(self.parent))
            # Gradients of several parts are added up in every rank before they are shared out (`Ranks.adds_once`).
            whole = 4 * trained if self.parts > 1 and trained <= REDUCED_ONCE and not self.twice else 0
            found["gathered"] = whole + theirs * width + layer * (narrow + 4 * self.trains_all) + ends * narrow
        head = 4 * self.child.vocab * self.child.hidden if self.trains_all else 0
        within = (max if self.twice else sum)(_activations(self.child, entries) for entries in self.entries)
        outputs = self.child.hidden * (self.parent.num_layers * width + 4 * len(self.entries))
        found["activations"] = self.tokens * (outputs + 4 * within) + head
        return found

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.held().values())


def recovery_facts(job: Job, parent: Described, reference: Shape | None = None) -> str:
    """One line for people: what a rank holds for a child as large as the parent, part by part."""
    whole = _recovery(job, parent, reference or parent.shape, _own(parent.shape))
    told = ", ".join(f"{name} {show_bytes(size)}" for name, size in whole.held().items() if size)
    return f"a rank holds {show_bytes(whole.total)} for a child as large as the parent ({told})"


def check_recovery(job: Job, parent: Described, reference: Shape | None = None) -> None:
    """Refuses a recovery that no child of the space fits, before anything is trained.

    `reference` is who is learnt from, where that is not the parent.

    Raises:
        UserError: what the least child takes on a rank, what there is, and what would fit.
    """
    there = memory_of_rank(job)
    if not job.recover.tokens or there is None:
        return
    least = _recovery(job, parent, reference or parent.shape, _least(job, parent.shape), spares=True)
    if least.total <= there[0]:
        return
    told = ", ".join(f"{name} {show_bytes(size)}" for name, size in least.held().items() if size)
    raise UserError(
        f"recover: the least child of the space takes {show_bytes(least.total)} on each rank that trains it ({told}), "
        f"and {there[1]}; {_way_out(job, least, there[0])}"
    )


def fit_together(job: Job, parent: Described, reference: Shape, children: Sequence[Entries]) -> int:
    """How many of these children, from the first, one worker can train beside each other; 1 where nothing here knows.

    Held are one parent, its layers' outputs of a whole batch, each child with its state, and the activations of one.
    """
    there = memory_of_rank(job)
    if there is None:
        return 1
    found = [_recovery(job, parent, reference, own) for own in children]
    batch = job.recover_batch * job.data.distill.sequence_length
    outputs = batch * reference.hidden * (reference.num_layers + 1) * _WIDTHS[compute_dtype(job, parent)]
    held = [{name: size for name, size in each.held().items() if name != "parent"} for each in found]
    once = found[0].held()["parent"] + outputs + max(each["activations"] for each in held)
    sizes = accumulate(sum(each.values()) - each["activations"] for each in held)
    return max(1, sum(once + size <= USED * there[0] for size in sizes))


def memory_of_rank(job: Job) -> tuple[int, str] | None:
    """Bytes that a rank has for a model, and how that is told; None where nothing here knows."""
    if job.hardware.device != "cpu":
        named, share = job.hardware.gpu or "", job.cluster.gpus_per_worker or 1.0
        if named in GPUS:
            size = int(min(share, 1.0) * GPUS[named].memory_bytes)
            return size, f"{'one' if share >= 1 else f'{share:g} of an'} {named} has {show_bytes(size)}"
        return _own_gpu(share) if job.cluster.address is None else None
    if job.cluster.memory_per_worker is not None:
        size = job.cluster.memory_per_worker
        return size, f"cluster.memory_per_worker is {show_bytes(size)}"
    if job.cluster.address is not None:
        return None
    total, ranks = usable_memory(), job.recover.workers
    shared = f", for {ranks} ranks" if ranks > 1 else ""
    return total // ranks, f"this machine has {show_bytes(total)}{shared}"


def _own_gpu(share: float) -> tuple[int, str] | None:
    """Of a share of the smallest GPU here; a machine without leaves it to whoever runs the job."""
    import torch

    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
    if not sizes:
        return None
    shared = f", of which a worker has {share:g}" if share < 1 else ""
    return int(min(sizes) * share), f"a GPU has {show_bytes(min(sizes))}{shared}"


def _recovery(job: Job, parent: Described, reference: Shape, entries: Entries, *, spares: bool = False) -> Recovery:
    """As a training begins; `spares`: as one does that has lacked memory again and again, one sequence at a time."""
    length = _longest(job)
    own = max(1, job.recover_batch // job.recover.workers)
    at_once = 1 if spares else max(1, min(own, MICRO_TOKENS // length))
    return Recovery(
        parent=reference,
        child=parent.shape,
        entries=entries,
        dtype=compute_dtype(job, parent),
        trains_all=job.recover.train == "all",
        ranks=job.recover.workers,
        sharded=job.recover.sharding == "full",
        tokens=at_once * length,
        parts=-(-own // at_once),
        on_gpu=job.hardware.device != "cpu",
        twice=spares,
    )


def _way_out(job: Job, least: Recovery, there: int) -> str:
    """What would fit, the first of: more ranks that share the weights, training less, shorter sequences."""
    shares_machine = job.hardware.device == "cpu" and job.cluster.memory_per_worker is None
    for ranks in (2**power for power in range(1, MOST_RANKS.bit_length())):
        room = there * least.ranks // ranks if shares_machine else there
        if ranks > least.ranks * least.sharded and replace(least, ranks=ranks, sharded=True).total <= room:
            return f"recover: {{workers: {ranks}, sharding: full}} would fit"
    if least.trains_all and replace(least, trains_all=False).total <= there:
        return "recover.train: replaced, which leaves the parent's own as they are, would fit"
    shorter = least.tokens
    while shorter > 8 and replace(least, tokens=shorter).total > there:
        shorter //= 2
    if replace(least, tokens=shorter).total <= there:
        return f"sequences of {shorter} tokens would fit (data.distill.sequence_length, recover.tail.sequence_length)"
    return f"workers with {show_bytes(least.total)} of memory would fit"


def _longest(job: Job) -> int:
    tail = job.recover.tail
    return max(job.data.distill.sequence_length, tail.sequence_length if tail.tokens else 0)


def _own(shape: Shape) -> Entries:
    return tuple({slot: shape.parent_entry(layer, slot) for slot in SLOTS} for layer in range(shape.num_layers))


def _least(job: Job, shape: Shape) -> Entries:
    """The fewest parameters that the space has for each subblock."""
    found: list[Mapping[Any, Entry]] = []
    for layer in range(shape.num_layers):
        variants = variants_of(job.space, shape, layer)
        entries = {slot: [v.entry(shape, layer) for v in variants if v.slot == slot] for slot in SLOTS}
        found.append({slot: min(own, key=partial(parameters, slot=slot, shape=shape)) for slot, own in entries.items()})
    return tuple(found)


def _numbers(shape: Shape, entries: Entries) -> int:
    return ends_parameters(shape) + sum(_layer(shape, own) for own in entries)


def _layer(shape: Shape, entries: Mapping[Any, Entry]) -> int:
    return sum(parameters(entries[slot], slot, shape) for slot in SLOTS)


def _activations(shape: Shape, entries: Mapping[Any, Entry]) -> int:
    """Numbers a token that a layer's matrices read and give: what is kept for its backward."""
    sizes: Iterator[tuple[int, ...]] = (
        size for slot in SLOTS for size in subblock_tensors(shape, slot, entries[slot]).values() if len(size) == 2
    )
    return sum(sum(size) for size in sizes)
