"""The cost table of a job without its search: timed in this process, on the machine that is going to run the child."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inlay.cluster.events import PieceEvent
from inlay.cluster.worker import is_out_of_memory
from inlay.nas.check import check_measured
from inlay.nas.engines.registry import ENGINES, kv_formats_of, storage_of
from inlay.nas.job import Job
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.conditions import workload_of
from inlay.nas.loop.search import target_of
from inlay.nas.pieces.kept_times import Times
from inlay.nas.pieces.subblock_times import SubblockBench
from inlay.nas.report.progress import Reporter
from inlay.nas.report.sentences import counted
from inlay.nas.stages.measure import CostRows
from inlay.nas.tables.origin import Origin

MEMORY_RETRIES: Final = 3
"""How often an attempt that ran out of memory is followed by one that holds half as many models."""


@dataclass(frozen=True)
class Measurement:
    """A cost table that was measured alone.

    Args:
        rows: as `tables/costs.py` says.
        origin: what the times are of.
        timed: subblocks that were timed now, ends among them, in all scenarios together.
        kept: those whose times this machine had.
    """

    rows: Sequence[Mapping[str, Any]]
    origin: Origin
    timed: int
    kept: int


def measure_alone(job: Job, reporter: Reporter, *, again: bool = False) -> Measurement:
    """Times the space of a job on this machine, with the job's engine; what the machine keeps is taken.

    Needs the parent's config.json, and of its weights nothing.

    Args:
        job: its parent, space and hardware count; a given cost table does not.
        reporter: told how far it is.
        again: whether what is kept is measured again, and replaced.

    Raises:
        UserError: the job is wrong, or the engine is not there, died or hangs.
    """
    parent = check_measured(job)
    engine, target = ENGINES[job.hardware.engine], target_of(job, parent)
    storage, caches = storage_of(job.hardware, parent.shape), kv_formats_of(job.hardware)[1:]
    table = CostRows(job.space, parent.shape, engine, target.format, storage, caches=caches)
    entries, scenarios = table.entries(), job.hardware.scenarios
    started = time.monotonic()
    reporter.stage_started("measure")
    scratch = Path(job.resolve(job.cluster.scratch)) if job.cluster.scratch else None
    benches = [SubblockBench(engine, target, parent.config, workload_of(each), scratch) for each in scenarios]
    held = [0 if again else len(bench.known(entries)) for bench in benches]
    wanted = len(scenarios) * (len(entries) + 1)
    what = f"times of {counted(len(entries), 'subblock')}"
    reporter.kept(sum(held), wanted, "times")
    reporter.batch_started(what, "scenarios")
    rows: list[dict[str, Any]] = []
    for number, (scenario, bench) in enumerate(zip(scenarios, benches, strict=True)):
        told = _Progress(reporter, scenario, number, len(scenarios))
        rows += table.of(scenario, _times(bench, entries, told, again), bench.compute_bytes(entries))
    reporter.stage_finished("measure", time.monotonic() - started)
    origin = Origin.of(engine.name, target.format, benches[0].environment, parent.shape, scenarios)
    return Measurement(rows, origin, wanted - sum(held), sum(held))


def _times(bench: SubblockBench, entries: Sequence[str], told: _Progress, again: bool) -> dict[str, Times]:
    told("started", 0.0)
    for attempt in range(MEMORY_RETRIES + 1):
        try:
            times = bench.times(entries, lambda share: told("progress", share), attempt, again=again)
        except Exception as error:  # how libraries tell of want of memory differs
            if attempt == MEMORY_RETRIES or not is_out_of_memory(error):
                raise
        else:
            break
    told("finished", 1.0)
    return times


class _Progress:
    """Tells a reporter of one scenario as if a worker measured it."""

    def __init__(self, reporter: Reporter, scenario: Scenario, number: int, total: int) -> None:
        self._reporter, self._label, self._number, self._total = reporter, f"scenario {scenario.name}", number, total

    def __call__(self, kind: Any, share: float) -> None:
        done = self._number + (kind == "finished")
        self._reporter.piece_event(PieceEvent(kind, self._label, "measure", done, self._total, None, share))
