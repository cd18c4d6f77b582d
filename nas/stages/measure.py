"""measure: the cost table. Times of every distinct subblock on the target device, sizes counted exactly.

One exclusive piece a scenario: nothing else of the search runs meanwhile. A subblock's time is what four of them add to
a model that has only the ends, measured through the same code that the export runs, in turns with the parent's own.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.families import Shape
from inlay.nas.hardware.costs import ENDS
from inlay.nas.hardware.timing import Times, Workload, random_model, rounds_of, summarise
from inlay.nas.job.sections import Scenario
from inlay.nas.modeling import ABSENT
from inlay.nas.stages.search import Search, Stage
from inlay.nas.stages.source import parent_of
from inlay.nas.tables_costs import given_costs
from inlay.nas.variants import Variant, ends_parameters, kv_bytes, parameters, variants_of, weights_bytes

TIMES = ("prefill_ns", "decode_ns", "runtime_ns", "spread_ns")
COPIES = 4
"""Copies of a subblock in the model that is timed: enough to rise above the noise of the ends."""


def cost_rows(search: Search) -> list[dict[str, Any]]:
    """The cost table's rows: read from `hardware.costs`, or measured."""
    if search.job.hardware.costs is not None:
        given = search.job.resolve(search.job.hardware.costs)
        names = [scenario.name for scenario in search.job.hardware.scenarios]
        return given_costs(given, names, search.job.space, search.parent.shape)
    rows: list[dict[str, Any]] = []
    for scenario in search.job.hardware.scenarios:
        times = measure_scenario(search, scenario)
        rows += scenario_rows(search, scenario, times)
    return rows


def measure_scenario(search: Search, scenario: Scenario) -> dict[str, dict[str, int]]:
    """Times by subblock key (`slot entry`) and `ends`, each `prefill_ns, decode_ns, runtime_ns, spread_ns`."""
    there = [(variant, shape, layer) for shape, layer, variant in _all_variants(search) if not variant.is_free]
    entries = sorted({entry_key(v.slot, v.entry(s, layer)) for v, s, layer in there if not v.is_absent(s, layer)})
    workload = workload_of(scenario)
    piece = search.piece(
        MEASURE,
        f"scenario {scenario.name}",
        {"entries": entries, "workload": asdict(workload)},
        {"entries": entries, "workload": asdict(workload), "environment": environment(search)},
    )
    (record,) = search.run([piece], exclusive=True)
    return {key: dict(times) for key, times in record.values["times"].items()}


def workload_of(scenario: Scenario) -> Workload:
    """The scenario as the timer needs it."""
    return Workload(scenario.batch_size, scenario.prefill, scenario.generate, scenario.threads)


def measure_subblocks(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Times every entry: models of a few copies of it, in turns with a model that has only the ends."""
    config = parent_of(arguments["parent"]).config
    dtype, device = getattr(torch, arguments["dtype"]), torch.device(arguments["device"])
    workload = Workload(**arguments["workload"])
    entries: list[str] = arguments["entries"]
    nothing = {"attention": ABSENT, "ffn": ABSENT}
    ends_only = random_model(config.with_blocks([nothing] * COPIES), dtype, device)
    # One turn of all; after an attempt that ran out of memory half as many models are held at once, beside the ends.
    held = max(1, -(-len(entries) // 2**context.memory_retries))
    values: dict[str, dict[str, int]] = {}
    for start in range(0, len(entries), held):
        models = {
            key: random_model(config.with_blocks([_block(key)] * COPIES), dtype, device, ends_only)
            for key in entries[start : start + held]
        }
        models["ends"] = ends_only
        share = len(models) / (len(entries) + 1)

        def on_round(done: float, start: int = start, share: float = share) -> None:
            context.progress(start / len(entries) + done * share)

        rounds = rounds_of(models, workload, device, on_round=on_round)
        values |= _own_times({key: summarise(found, workload) for key, found in rounds.items()}, workload)
    return PieceOutput(values={"times": values}, blobs={})


def _own_times(times: Mapping[str, Times], workload: Workload) -> dict[str, dict[str, int]]:
    """What a subblock adds to the ends, which were timed beside it."""
    ends = times["ends"]
    values = {}
    for key, found in times.items():
        if key == "ends":
            prefill, decode, spread = found.prefill_ns, found.decode_ns, found.spread_ns
        else:
            prefill = max(0, found.prefill_ns - ends.prefill_ns) // COPIES
            decode = max(0, found.decode_ns - ends.decode_ns) // COPIES
            spread = (found.spread_ns + ends.spread_ns) // COPIES
        runtime = prefill + workload.generate * decode
        values[key] = {"prefill_ns": prefill, "decode_ns": decode, "runtime_ns": runtime, "spread_ns": spread}
    return values


MEASURE = Stage("measure", 2, measure_subblocks)


def scenario_rows(search: Search, scenario: Scenario, times: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Rows of one scenario: every variant at every layer with its measured times and exact sizes, then the ends."""
    length = scenario.prefill + scenario.generate
    rows = []
    for shape, layer, variant in _all_variants(search):
        entry = variant.entry(shape, layer)
        if variant.is_free:
            continue
        own = dict.fromkeys(TIMES, 0) if variant.is_absent(shape, layer) else times[entry_key(variant.slot, entry)]
        rows.append(
            {
                "scenario": scenario.name,
                "layer": layer,
                "slot": variant.slot,
                "variant": variant.label,
                **own,
                "parameters": parameters(entry, variant.slot, shape),
                "weights_bytes": weights_bytes(entry, variant.slot, shape),
                "kv_bytes": kv_bytes(entry, shape, scenario.batch_size, length),
            }
        )
    shape = search.parent.shape
    ends = ends_parameters(shape)
    layer, slot, label = ENDS
    sizes = {"parameters": ends, "weights_bytes": ends * shape.dtype_bytes, "kv_bytes": 0}
    rows.append({"scenario": scenario.name, "layer": layer, "slot": slot, "variant": label, **times["ends"], **sizes})
    return rows


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


def entry_key(slot: str, entry: dict[str, Any]) -> str:
    """A subblock's shape as text: equal shapes are measured once, whatever the layer."""
    return f"{slot} {json.dumps(entry, sort_keys=True)}"


def _all_variants(search: Search) -> Sequence[tuple[Shape, int, Variant]]:
    shape = search.parent.shape
    return [(shape, layer, v) for layer in range(shape.num_layers) for v in variants_of(search.job.space, shape, layer)]


def _block(key: str) -> dict[str, Any]:
    slot, text = key.split(" ", 1)
    return {"attention": ABSENT, "ffn": ABSENT, slot: json.loads(text)}
