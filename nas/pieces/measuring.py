"""What a worker times: every distinct subblock, and whole architectures in turns with the parent."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.engines.engine import Engine, Target
from inlay.nas.engines.registry import ENGINES
from inlay.nas.engines.timing import Workload, relative_error, runtimes, summarise
from inlay.nas.pieces.subblock_times import SubblockBench
from inlay.nas.pieces.weights import parent_of


@dataclass(frozen=True)
class Measured:
    """An architecture's times in one scenario, taken in turns with the parent's.

    Args:
        prefill_ns, decode_ns, runtime_ns, spread_ns: medians of the architecture's own rounds.
        time_errors: standard errors of `prefill, decode, runtime`, relative to them.
        ratios: `prefill, decode, runtime` relative to the parent, medians of the paired rounds.
        ratio_errors: standard errors of the ratios, relative to them.
        parent: the parent's `prefill_ns, decode_ns, runtime_ns` in the same rounds.
        held, parent_held: what the engine says that it holds for the architecture and for the parent, as `Held` has it;
            empty where it does not tell.
    """

    prefill_ns: int
    decode_ns: int
    runtime_ns: int
    spread_ns: int
    time_errors: dict[str, float]
    ratios: dict[str, float]
    ratio_errors: dict[str, float]
    parent: dict[str, int]
    held: dict[str, int | None] = field(default_factory=dict)
    parent_held: dict[str, int | None] = field(default_factory=dict)


def describe_device(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """What times depend on where they are taken: the processor's name and the versions of what computes."""
    engine, target = _engine(arguments)
    return PieceOutput(values={"environment": engine.describe(target)})


def measure_subblocks(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Times every entry, by small models in turns with each other; what this machine has measured before is taken."""
    engine, target = _engine(arguments)
    config = parent_of(arguments["parent"]).config
    bench = SubblockBench(engine, target, config, Workload(**arguments["workload"]), context.scratch)
    entries = arguments["entries"]
    times = bench.times(entries, context.progress, context.memory_retries)
    return PieceOutput(values={"times": times, "compute_bytes": bench.compute_bytes(entries)})


def time_architectures(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Times architectures in turns with the parent and each other; weights are random, shapes and code the export's.

    After an attempt that ran out of memory one model is held at a time, made anew for every turn.
    """
    engine, target = _engine(arguments)
    config = parent_of(arguments["parent"]).config
    workload = Workload(**arguments["workload"])
    shapes = {"parent": parent_of(arguments.get("original", arguments["parent"])).config}
    whole = arguments["whole"]
    shapes |= {name: config.with_blocks(blocks, *whole[name]) for name, blocks in arguments["architectures"].items()}
    together = not context.memory_retries
    timed = engine.rounds(shapes, workload, target, context.progress, together=together, scratch=context.scratch)
    parent = timed.rounds["parent"]
    held = {name: asdict(own) for name, own in timed.held.items()}
    measured = {
        name: asdict(against(parent, timed.rounds[name], workload))
        | {"held": held.get(name, {}), "parent_held": held.get("parent", {})}
        for name in arguments["architectures"]
    }
    return PieceOutput(values={"conditions": arguments["conditions"], "measured": measured}, blobs={})


def _engine(arguments: Mapping[str, Any]) -> tuple[Engine, Target]:
    return ENGINES[arguments["engine"]], Target(**arguments["target"])


def against(parent: Sequence[tuple[int, int]], own: Sequence[tuple[int, int]], workload: Workload) -> Measured:
    """The times of one model beside the parent's of the same rounds."""
    mine, theirs = _by_name(own, workload), _by_name(parent, workload)
    pairs = {name: [a / b for a, b in zip(mine[name], theirs[name], strict=True)] for name in mine}
    times, base = summarise(own, workload), summarise(parent, workload)
    return Measured(
        times.prefill_ns,
        times.decode_ns,
        times.runtime_ns,
        times.spread_ns,
        {name: relative_error(values) for name, values in mine.items()},
        {name: statistics.median(values) for name, values in pairs.items()},
        {name: relative_error(values) for name, values in pairs.items()},
        {"prefill_ns": base.prefill_ns, "decode_ns": base.decode_ns, "runtime_ns": base.runtime_ns},
    )


def _by_name(rounds: Sequence[tuple[int, int]], workload: Workload) -> dict[str, list[int]]:
    prefill, decode = ([times[position] for times in rounds] for position in (0, 1))
    return {"prefill": prefill, "decode": decode, "runtime": runtimes(rounds, workload)}
