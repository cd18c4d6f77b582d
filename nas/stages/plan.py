"""plan: what a search will take, before anything is run or written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from inlay.nas.engines.registry import ENGINES, format_of, kv_formats_of, storage_of
from inlay.nas.errors import UserError
from inlay.nas.families import Described, Parent, Shape, describe_folder, described, subblock_tensors
from inlay.nas.families.checkpoint import WEIGHT_FILES
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import form_of
from inlay.nas.job import Job
from inlay.nas.job.budget import PEAK
from inlay.nas.job.judged import judged_length
from inlay.nas.job.rounds import round_values
from inlay.nas.loop.conditions import workload_of
from inlay.nas.loop.prompts import PROMPTS
from inlay.nas.loop.recovery_memory import check_recovery, recovery_facts
from inlay.nas.loop.sampling import rows_written, sampled_lengths
from inlay.nas.loop.search import compute_dtype, target_of
from inlay.nas.pieces.kept_times import kept_sets
from inlay.nas.pieces.shards import shard_ranges
from inlay.nas.pieces.subblock_times import SubblockBench
from inlay.nas.quantities import show_bytes
from inlay.nas.report.sentences import counted
from inlay.nas.stages.calibrate import INPUT_TOKENS
from inlay.nas.stages.estimate import (
    START_SECONDS,
    Expected,
    Space,
    expected_cost,
    expected_stages,
    is_guided,
    judged_tokens,
    num_models,
    scored_blocks,
    variant_tokens_of,
)
from inlay.nas.stages.estimates import CHECKED, are_estimated
from inlay.nas.stages.machines import SLOTS, machine_of
from inlay.nas.stages.measure import CostRows
from inlay.nas.stages.rounds import sizes_of_parent
from inlay.nas.stages.run import open_job_original, open_job_parent
from inlay.nas.stages.space_sizes import least_sizes, num_architectures
from inlay.nas.tables.idle_limits import idle_limits, parent_sizes
from inlay.nas.variants import ends_forms, parameters, variants_of


def make_plan(job: Job) -> dict[str, Any]:
    """The plan that `inlay plan` shows; raises UserError for what is wrong with the job or its parent.

    Times and costs are estimates for workers on CPUs like this one or on a kind of GPU that the job names
    (`nas/stages/machines.py`), None for other devices.
    """
    original = open_job_original(job)
    with ExitStack() as stack:
        parent = stack.enter_context(_described(job))
        against = parent if original is None else stack.enter_context(described(original))
        if job.rounds == 1:
            return _plan_of(job, parent, against.shape)
        known = sizes_of_parent(job, parent.shape)
        rounds = [Job.from_dict(round_values(job, n, known), folder=job.folder) for n in range(1, job.rounds + 1)]
        plan = _plan_of(rounds[0], parent, parent.shape)
    return {**plan, "facts": [*plan["facts"], *_rounds(job, rounds)]}


@contextmanager
def _described(job: Job) -> Iterator[Described]:
    """The job's parent, of whose folder config.json is enough: weights of some hundred GB may be elsewhere."""
    folder = Path(job.resolve(job.parent))
    if (folder / "config.json").is_file() and not any(any(folder.glob(name)) for name in WEIGHT_FILES):
        yield describe_folder(folder)
        return
    with described(open_job_parent(job)) as parent:
        yield parent


def _rounds(job: Job, rounds: Sequence[Job]) -> list[tuple[str, str]]:
    """What comes after the first of several rounds, which the plan is of."""
    return [
        ("rounds", f"{job.rounds}, of which this is the first; each is a search from the last one's child"),
        *((f"round {number}", _round_budget(each, job, number)) for number, each in enumerate(rounds, 1)),
    ]


def _round_budget(own: Job, job: Job, number: int) -> str:
    """A round's limits; an absolute one on what is measured lies where the parent's value tells, once it is known."""
    measured = {limit.name for limit in job.budget if limit.ratio is None} - {"parameters", "weights", "kv", "memory"}
    parts = []
    for limit in own.budget:
        way = "on the way to " if limit.name in measured and number < job.rounds else ""
        parts.append(f"{limit.field.removeprefix('budget.')} {way}{limit.text}")
    return ", ".join(parts)


def _budget(job: Job) -> str:
    return ", ".join(f"{limit.field.removeprefix('budget.')} {limit.text}" for limit in job.budget)


def _plan_of(job: Job, parent: Described, against: Shape) -> dict[str, Any]:
    """The plan of one search; `against` is the model that its budget's ratios are of."""
    shape = parent.shape
    check_recovery(job, parent, against)
    space = [variants_of(job.space, shape, layer) for layer in range(shape.num_layers)]
    trained = sum(variant.trained for layer in space for variant in layer)
    storage = storage_of(job.hardware, shape)
    sizes = parent_sizes(shape, job.hardware.scenarios[0], storage)
    return {
        "parent": {
            "name": job.parent,
            "family": shape.family,
            "layers": shape.num_layers,
            "parameters": sizes["parameters"],
            "weights_bytes": sizes["weights"],
        },
        "space": {
            "variants": sum(not variant.is_parent for layer in space for variant in layer),
            "trained": trained,
            "log10_architectures": math.log10(num_architectures(space)),
        },
        "stages": _stages(job, parent, space, trained),
        "facts": _facts(job, parent, space, against),
        "warnings": _warnings(job, parent, space, trained, against),
    }


def scratch_bytes(job: Job, parent: Described, trained: int) -> int:
    """What scratch holds at most: the states before every layer and, where training is in float32, those within."""
    in_float32 = compute_dtype(job, parent) == "float32"
    states = (2 if in_float32 and trained else 1) * parent.shape.num_layers + 1
    return _advanced(job, trained)[0] * parent.shape.hidden * (4 if in_float32 else 2) * states


def rounding_bytes(shape: Shape, space: Space) -> int:
    """Of what rounding leaves: what matrices read, in the workspace, and on scratch every matrix in every format."""
    total = 0
    for layer, variants in enumerate(space):
        formed = [variant for variant in variants if variant.form is not None]
        for variant in formed:
            sizes = subblock_tensors(shape, variant.slot, variant.entry(shape, layer))
            for name, size in sizes.items():
                if len(size) == 2:
                    total += FORMATS[form_of(str(variant.form), name)].holding(size[1]).num_bytes(size)
        # What the first matrix of a subblock reads, and what the last does.
        for slot in SLOTS if formed else ():
            own = subblock_tensors(shape, slot, shape.parent_entry(layer, slot)).values()
            rows = [size[1] for size in own if len(size) == 2]
            total += sum(4 * row**2 for row in (*rows[:1], *rows[1:][-1:]))
    return total


def _advanced(job: Job, trained: int) -> tuple[int, int]:
    """Tokens of the longest text whose states lie on scratch, and of each of its sequences."""
    if trained:
        return job.distill.tokens, job.data.distill.sequence_length
    if are_estimated(job):
        return INPUT_TOKENS, job.data.distill.sequence_length
    return judged_tokens(job)[0], judged_length(job)


def _stages(job: Job, parent: Described, space: Space, trained: int) -> list[dict[str, Any]]:
    """Every stage in the order they run, with its part of the whole; `advance` is within distill's and score's time."""
    shape = parent.shape
    tokens, length = _advanced(job, trained)
    machine = machine_of(job, parent)
    found = {} if machine is None else expected_stages(job, parent, machine)
    score_tokens, report_tokens = judged_tokens(job)
    variant_bytes = sum(
        parameters(v.entry(shape, i), v.slot, shape) for i, vs in enumerate(space) for v in vs if v.trained
    )
    told: dict[str, dict[str, Any]] = {
        **({"sample": _sampled(job)} if sampled_lengths(job) else {}),
        "measure": {
            "pieces": len(job.hardware.scenarios),
            "what": "times of every distinct subblock",
        },
        "advance": {
            "pieces": len(shard_ranges(max(1, tokens // length), length)) if tokens else 0,
            "bytes": scratch_bytes(job, parent, trained),
            "what": "the parent's hidden states, on scratch" if tokens else "nothing: no layer is run by itself",
        },
        "distill": {
            "pieces": shape.num_layers if trained else 0,
            "bytes": variant_bytes * shape.dtype_bytes,
            "what": _distilled(job, space, trained),
        },
        "score": {
            **({"bytes": rounded} if (rounded := rounding_bytes(parent.shape, space)) else {}),
            "pieces": len(shard_ranges(score_tokens // length, length)) if are_estimated(job) else shape.num_layers,
            "what": _scored(job, space, score_tokens),
        },
        "assemble": {
            "what": f"a pool of {job.solve.pool}, true KL, true times, baselines, {job.recover.probed} probes",
        },
        "recover": {
            "pieces": num_models(job) if job.recover.tokens else 0,
            "what": _recovered(job),
        },
        "evaluate": {"what": f"{_sequences(job, report_tokens)} that nothing has seen, times, {PROMPTS} prompts"},
        "export": {"what": "a Transformers folder"},
    }
    if job.hardware.costs is not None:
        told["measure"] = {"what": "nothing: the job gives the cost table"}
    elif known := _known_times(job, parent):
        wanted = len(job.hardware.scenarios) * (len(_timed(job, parent)) + 1)
        told["measure"]["what"] += f"; of {wanted} times this machine has {known}"
        if "measure" in found:
            start = 0 if "sample" in found else START_SECONDS  # workers start all the same
            share, all_of_it = 1 - known / wanted, found["measure"]
            measured = (start + (all_of_it.seconds - start) * share, all_of_it.worker_seconds * share)
            found["measure"] = replace(all_of_it, seconds=measured[0], worker_seconds=measured[1])
    return [{"name": name, **_expected(job, found.get(name)), **stage} for name, stage in told.items()]


def _expected(job: Job, expected: Expected | None) -> dict[str, Any]:
    """Time, cost and work of a stage, None where they are not known before it runs."""
    if expected is None:
        return dict.fromkeys(("seconds", "cpu_hours", "gpu_hours", "operations", "read_bytes", "limit"))
    return {
        "seconds": expected.seconds,
        **asdict(expected_cost(job, expected)),
        "operations": expected.operations,
        "read_bytes": expected.read_bytes,
        "limit": expected.limit,
    }


def _distilled(job: Job, space: Space, trained: int) -> str:
    """What is trained, and what may be after a first solve."""
    later = sum(v.trained and v.beside is not None and not v.run for layer in space for v in layer)
    if not trained:
        return "nothing to train"
    more = f", {later} of them where a first solve leaves attention out" if later else ""
    if is_guided(job):
        every, expected = trained * job.distill.tokens, variant_tokens_of(job, trained)
        more = f" at most{more}; about {expected:,} of {every:,} variant-tokens, guided"
    return f"{trained} variants, {job.distill.tokens:,} tokens each{more}"


def _sampled(job: Job) -> dict[str, Any]:
    texts = {part: (*rows_written(*each), each[1]) for part, each in sampled_lengths(job).items()}
    words = [
        f"{rows * length:,} tokens ({rows:,} of {length:,}) to {part}" for part, (rows, _, length) in texts.items()
    ]
    pieces = sum(-(-rows // at_once) for rows, at_once, _ in texts.values())
    return {"pieces": pieces, "what": f"the parent writes {' and '.join(words)}"}


def _scored(job: Job, space: Space, tokens: int) -> str:
    if not are_estimated(job):
        return f"{scored_blocks(job, space)} blocks on {_sequences(job, tokens)}"
    number = scored_blocks(job, space) - job.score.pairs
    return f"{number} estimates, {CHECKED} of them beside their true KL, on {_sequences(job, tokens)}"


def _recovered(job: Job) -> str:
    if not job.recover.tokens:
        return "nothing to train"
    baselines = counted(num_models(job) - 1, "baseline")
    return f"child and {baselines} where they differ, {job.recover.tokens:,} tokens each"


def _timed(job: Job, parent: Described) -> list[str]:
    """The subblocks that `measure` asks for."""
    form = format_of(job.hardware.engine, job.hardware.format, parent.shape)
    storage, caches = storage_of(job.hardware, parent.shape), kv_formats_of(job.hardware)[1:]
    engine = ENGINES[job.hardware.engine]
    return CostRows(job.space, parent.shape, engine, form, storage, caches=caches).entries()


def _known_times(job: Job, parent: Described) -> int:
    """Times that this machine keeps, in all scenarios together; 0 where a cluster measures, or nothing of the engine is
    kept: only then it is not started."""
    engine = ENGINES[job.hardware.engine]
    if job.hardware.device != "cpu" and not torch.cuda.is_available():
        return 0
    if job.cluster.address is not None or not any(held.conditions.get("engine") == engine.name for held in kept_sets()):
        return 0
    entries, target = _timed(job, parent), target_of(job, parent)
    try:
        benches = [
            SubblockBench(engine, target, parent.config, workload_of(scenario)) for scenario in job.hardware.scenarios
        ]
    except UserError:  # it is not installed here, which `run` tells
        return 0
    return sum(len(bench.known(entries)) for bench in benches)


def _sequences(job: Job, tokens: int) -> str:
    length = judged_length(job)
    return f"{tokens:,} tokens ({tokens // length} of {length:,})"


def _facts(job: Job, parent: Described, space: Space, against: Shape) -> list[tuple[str, str]]:
    shape = parent.shape
    storage = storage_of(job.hardware, shape)
    facts = [("budget", _budget(job))]
    if not isinstance(parent, Parent):
        facts.append(("weights", f"not in {job.parent}: its config.json says all that is told here; `run` needs them"))
    if job.recover.tokens:
        facts.append(("recover", recovery_facts(job, parent, against)))
    for scenario in job.hardware.scenarios:
        length = scenario.prefill + scenario.generate
        kv = sum(
            storage.kv(shape.parent_entry(i, "attention"), shape, scenario.batch_size, length)
            for i in range(shape.num_layers)
        )
        facts.append(
            (
                scenario.name,
                f"batch {scenario.batch_size}, prompt {scenario.prefill}, {scenario.generate} generated; "
                f"the parent's KV cache takes {kv:,} bytes",
            )
        )
        least, own = (
            least_sizes(parent, space, _ends(job, shape), scenario, storage, kv_formats_of(job.hardware)[1:]),
            parent_sizes(against, scenario, storage_of(job.hardware, against)),
        )
        ratios = ", ".join(f"{name} {least[name] / own[name]:.3f}x" for name in own)
        if any(limit.name == PEAK and limit.scenario in (None, scenario.name) for limit in job.budget):
            buffers = f"memory and the buffers that {job.hardware.engine} computes in, known once it was measured"
            facts.append((PEAK, f"in {scenario.name}: {buffers}; least memory {show_bytes(least['memory'])}"))
        facts.append(("least", f"in {scenario.name}: {ratios}; least times are known once they were measured"))
    return facts


def _warnings(job: Job, parent: Described, space: Space, trained: int, against: Shape) -> list[str]:
    storage, whole = storage_of(job.hardware, parent.shape), storage_of(job.hardware, against)
    sizes = {scenario.name: parent_sizes(against, scenario, whole) for scenario in job.hardware.scenarios}
    found = idle_limits(job.budget, sizes)
    folder = Path(job.resolve(job.cluster.scratch)) if job.cluster.scratch else job.default_workspace()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if scratch_bytes(job, parent, trained) > free // 2:
        found.append("scratch does not hold all boundaries at once: layers are worked on in spans, one after the other")
    for scenario in job.hardware.scenarios:
        own, caches = sizes[scenario.name], kv_formats_of(job.hardware)[1:]
        least = least_sizes(parent, space, _ends(job, parent.shape), scenario, storage, caches)
        for limit in job.budget:
            here = limit.scenario in (None, scenario.name)
            if limit.name == PEAK and here and limit.amount is not None and limit.amount < least["memory"]:
                found.append(
                    f"{limit.field}: {limit.text} cannot be met in {scenario.name}; weights and cache alone take "
                    f"{show_bytes(least['memory'])} at least"
                )
            if limit.name in own and here:
                if least[limit.name] <= limit.against(own[limit.name]):
                    continue
                found.append(
                    f"{limit.field}: {limit.text} cannot be met in {scenario.name}; the least that the space reaches "
                    f"is {least[limit.name] / own[limit.name]:.3f}x"
                )
    return found


def _ends(job: Job, shape: Shape) -> tuple[str, ...]:
    return ends_forms(job.space, shape) if ENGINES[job.hardware.engine].stores_ends_apart else ()
