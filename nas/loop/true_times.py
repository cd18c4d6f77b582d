"""The times that a candidate is judged and reported by: measured here, or those of a given cost table."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path

import torch

from inlay.nas.job.sections import Scenario
from inlay.nas.loop.search import Search
from inlay.nas.pieces.measuring import Measured, time_architecture
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.timing import Workload
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, identify
from inlay.nas.tables.costs import TIMES, CostTable
from inlay.nas.variants.entries import entries_of

TRUE_TIMES = Stage("true_times", 2, time_architecture)


def times_are_given(search: Search) -> bool:
    """Whether `hardware.costs` gives the times: its device is not here to be measured."""
    return search.job.hardware.costs is not None


def judged_times(
    search: Search, costs: CostTable, architecture: Blocks, what: str = "times of 1 candidate"
) -> dict[str, Measured]:
    """Times by scenario: true ones, or the sums of the given table, so that equal tables choose equal children.

    `what` is what people are told of it.
    """
    if not times_are_given(search):
        return measure(search, architecture, what)
    return {s.name: _summed(costs, s.name, architecture) for s in search.job.hardware.scenarios}


def _summed(costs: CostTable, scenario: str, architecture: Blocks) -> Measured:
    own = costs.total(scenario, architecture)
    parent = costs.total(scenario, [PARENT_BLOCK] * len(architecture))
    names = [f"{name}_ns" for name in TIMES]
    return Measured(
        own["prefill_ns"],
        own["decode_ns"],
        own["runtime_ns"],
        0,
        {name: own[f"{name}_ns"] / parent[f"{name}_ns"] for name in TIMES},
        {name: parent[name] for name in names},
    )


def measure(search: Search, architecture: Blocks, what: str) -> dict[str, Measured]:
    """True times by scenario; `what` is what people are told of it."""
    blocks = entries_of(search.parent.shape, architecture)
    found = {}
    for scenario in search.job.hardware.scenarios:
        workload = asdict(workload_of(scenario))
        depends = {"blocks": blocks, "workload": workload, "environment": environment(search)}
        name = f"{identify(architecture)} in {scenario.name}"
        piece = search.piece(TRUE_TIMES, name, {"blocks": blocks, "workload": workload}, depends)
        (record,) = search.run([piece], what, exclusive=True)
        found[scenario.name] = Measured(**record.values["measured"])
    return found


def workload_of(scenario: Scenario) -> Workload:
    """The scenario as the timer needs it."""
    return Workload(scenario.batch_size, scenario.prefill, scenario.generate, scenario.threads)


def environment(search: Search) -> dict[str, str]:
    """What a measured time depends on beside the model: device, versions, number format."""
    import transformers

    device = search.job.hardware.device
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def processor() -> str:
    """The CPU's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
