"""What a worker times: every distinct subblock, and whole architectures in turns with the parent."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.nas.modeling import InlayConfig, InlayForCausalLM
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.pieces.timing import Times, Workload, random_model, relative_error, rounds_of, runtimes, summarise
from inlay.nas.pieces.weights import parent_of

COPIES = 4
"""Copies of a subblock in the model that is timed: enough to rise above the noise of the ends."""


@dataclass(frozen=True)
class Measured:
    """An architecture's times in one scenario, taken in turns with the parent's.

    Args:
        prefill_ns, decode_ns, runtime_ns, spread_ns: medians of the architecture's own rounds.
        time_errors: standard errors of `prefill, decode, runtime`, relative to them.
        ratios: `prefill, decode, runtime` relative to the parent, medians of the paired rounds.
        ratio_errors: standard errors of the ratios, relative to them.
        parent: the parent's `prefill_ns, decode_ns, runtime_ns` in the same rounds.
    """

    prefill_ns: int
    decode_ns: int
    runtime_ns: int
    spread_ns: int
    time_errors: dict[str, float]
    ratios: dict[str, float]
    ratio_errors: dict[str, float]
    parent: dict[str, int]


def describe_device(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """What times depend on where they are taken: the processor's name and the versions of what computes."""
    import transformers

    device = torch.device(arguments["device"])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return PieceOutput(values={"environment": {"device": name, **versions}})


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


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
        models = {"ends": ends_only} | {
            key: random_model(config.with_blocks([_block(key)] * COPIES), dtype, device, ends_only)
            for key in entries[start : start + held]
        }
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


def time_architectures(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Times architectures in turns with the parent and each other; weights are random, shapes and code the export's.

    After an attempt that ran out of memory one model is held at a time, made anew for every turn.
    """
    config = parent_of(arguments["parent"]).config
    dtype, device = getattr(torch, arguments["dtype"]), torch.device(arguments["device"])
    workload = Workload(**arguments["workload"])
    shapes = {"parent": config}
    shapes |= {name: config.with_blocks(blocks) for name, blocks in arguments["architectures"].items()}
    rebuilt = _Rebuilt(shapes, dtype, device)
    models = rebuilt if context.memory_retries else rebuilt.all_at_once()
    rounds = rounds_of(models, workload, device, on_round=context.progress, together=not context.memory_retries)
    parent = rounds["parent"]
    measured = {name: asdict(_against(parent, own, workload)) for name, own in rounds.items() if name != "parent"}
    return PieceOutput(values={"conditions": arguments["conditions"], "measured": measured}, blobs={})


@dataclass(frozen=True)
class _Rebuilt(Mapping[str, InlayForCausalLM]):
    """Models of these shapes, each made when it is asked for, and warm."""

    shapes: Mapping[str, InlayConfig]
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, name: str) -> InlayForCausalLM:
        model: Any = random_model(self.shapes[name], self.dtype, self.device)
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        built: InlayForCausalLM = model
        return built

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def all_at_once(self) -> dict[str, InlayForCausalLM]:
        """The models, with the ends of the first."""
        models: dict[str, InlayForCausalLM] = {}
        for name, config in self.shapes.items():
            models[name] = random_model(config, self.dtype, self.device, next(iter(models.values()), None))
        return models


def _against(parent: Sequence[tuple[int, int]], own: Sequence[tuple[int, int]], workload: Workload) -> Measured:
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


def _block(key: str) -> dict[str, Any]:
    slot, text = key.split(" ", 1)
    return {"attention": ABSENT, "ffn": ABSENT, slot: json.loads(text)}
