"""What each stage of a search will take: operations and bytes read are counted, and a machine's pace tells the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from inlay.cluster.capacity import usable_cpus
from inlay.cluster.cost import Cost
from inlay.distill.rates import plan_local_trials, plan_trials
from inlay.distill.settings import JUDGED
from inlay.nas.engines.timing import ROUNDS, SAMPLED_STEPS
from inlay.nas.engines.transformers_engine import COPIES
from inlay.nas.families import Described, Shape
from inlay.nas.job import Job, Scenario
from inlay.nas.job.judged import judged_length
from inlay.nas.loop.excess import is_measured
from inlay.nas.loop.probes import AT_ONCE, probe_tokens
from inlay.nas.loop.prompts import ADDED_TOKENS
from inlay.nas.loop.resources import resources_of
from inlay.nas.loop.sampling import rows_written, sampled_lengths
from inlay.nas.loop.texts import held_out_batches
from inlay.nas.loop.training import global_settings, most_ahead
from inlay.nas.loop.true_kl import GROUP
from inlay.nas.pieces.shards import SMALLEST_SHARD, shard_ranges
from inlay.nas.pieces.subblock_times import entry_key
from inlay.nas.stages.calibrate import INPUT_TOKENS
from inlay.nas.stages.distill import local_settings
from inlay.nas.stages.estimates import CHECKED, are_estimated
from inlay.nas.stages.guided import JUDGED_SHARE, part_ends
from inlay.nas.stages.machines import FORWARD, SLOTS, Machine, ThisCpu
from inlay.nas.tables.idle_limits import parent_sizes
from inlay.nas.variants import Variant, ends_parameters, parameters, variants_of, working_parameters
from inlay.nas.variants.storage import AsParent

CHILD = 0.8
"""Of the parent's operations and times, what one forward of a child is taken to need."""
VARIANT = 0.4
"""Of a layer's operations, what one variant of it is taken to need."""
STEP = 2.5
"""A decode step of a layer in its model, with cache and masks, over the layer alone on one token."""
START_SECONDS = 8.0
"""Until Ray and the first worker, with all that it imports, have started."""
SWAPPED = 12
"""Architectures that the swaps and the baselines' choices add to the pool's, about."""
STORED_BYTES_PER_SECOND = 2e8
ROUNDED_PER_SECOND = 2e6
"""Numbers of matrices whose codes one thread chooses (nas/formats/fitting.py)."""
GUIDED = 0.35
"""Of the tokens of a training in full, what a guided one is taken to need: the mean of benchmarks/results/guided.md."""


@dataclass(frozen=True)
class Expected:
    """What a stage will take.

    Args:
        seconds: by the clock.
        worker_seconds: the same, added up over the workers that are held meanwhile.
        operations: of products, multiplications and additions.
        read_bytes: of the parent's weights, every time that a piece reads them.
        parts: the worker-seconds by what takes them: `computing`, `reading`, `starting`.
    """

    seconds: float
    worker_seconds: float = 0.0
    operations: float = 0.0
    read_bytes: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        """What most of the workers' time goes to; "" where nothing is known of it."""
        return max(self.parts, key=lambda name: self.parts[name]) if any(self.parts.values()) else ""

    @property
    def figures(self) -> dict[str, float]:
        """What is kept of it beside what the stage took."""
        return {"planned_seconds": self.seconds, "operations": self.operations, "read_bytes": self.read_bytes}

    def scaled(self, factor: float) -> Expected:
        """So many times as much."""
        return Expected(
            factor * self.seconds,
            factor * self.worker_seconds,
            factor * self.operations,
            factor * self.read_bytes,
            {name: factor * seconds for name, seconds in self.parts.items()},
        )

    def __add__(self, other: Expected) -> Expected:
        return Expected(
            self.seconds + other.seconds,
            self.worker_seconds + other.worker_seconds,
            self.operations + other.operations,
            self.read_bytes + other.read_bytes,
            {name: self.parts.get(name, 0) + other.parts.get(name, 0) for name in {**self.parts, **other.parts}},
        )


Space = list[tuple[Variant, ...]]
"""The variants of each layer."""


def expected_stages(job: Job, parent: Described, machine: Machine) -> dict[str, Expected]:
    """Of every stage, in the order in which they run, on workers of a machine."""
    shape = parent.shape
    length, judged = job.data.distill.sequence_length, judged_length(job)
    space = [variants_of(job.space, shape, layer) for layer in range(shape.num_layers)]
    trained = sum(variant.trained for layer in space for variant in layer)
    whole = parent_sizes(shape, job.hardware.scenarios[0], AsParent())["parameters"]
    own, head = working(shape), shape.vocab * shape.hidden

    workers = job.cluster.max_workers or local_workers(job)
    by_layer = min(workers, shape.num_layers)
    models = num_models(job)
    # Child, uniform and depth are trained at once where there are workers for them, each on its own ranks.
    places = max(1, workers // job.recover.workers)
    ahead = _ahead(job, places, models)

    forward = FORWARD * (own + head)
    reads = Reads.of(shape)

    def work(operations: float, length: int, at_once: int, read: float = 0.0, pieces: float = 0.0) -> Expected:
        """So much of it on sequences of a length, by several workers at once."""
        parts = {
            "computing": operations / machine.operations_per_second(length),
            "reading": read * machine.read_seconds_per_byte,
            "starting": min(pieces, at_once) * machine.worker_seconds,
        }
        seconds = sum(parts.values())
        return Expected(seconds / max(1, at_once), seconds, operations, read, parts)

    def training(tokens: int, beside: int) -> float:
        """Operations of one model: its steps, those of one more rate, and its judgements; a backward is two
        forwards. The parent's forward is that of so many models that one worker trains beside each other."""
        if not tokens:
            return 0.0
        settings = global_settings(job, tokens)
        batch_tokens = job.recover_batch * length
        steps = settings.steps + plan_trials(settings).steps
        judged = held_out_batches(job, tokens)  # by the parent once, and at the start and in the range test too
        forwards = steps * (1 / beside + 3 * CHILD) + judged * (1 / beside + (JUDGED + 2) * CHILD)
        return batch_tokens * forwards * forward

    def trainings(number: int, tokens: int, others: int = 0) -> Expected:
        """Of so many whole models, with others at the same time: each rank reads parent and child once."""
        if not (number and tokens):
            return Expected(0)
        beside = number if workers == 1 else 1
        ranks = number * job.recover.workers
        read = ranks * (1 / beside + CHILD) * reads.whole
        at_once = min(number + others, places) * job.recover.workers
        return work(number * training(tokens, beside), length, at_once, read, ranks)

    score_tokens, report_tokens = judged_tokens(job)
    score_shards = len(shard_ranges(score_tokens // judged, judged))
    report_shards = len(shard_ranges(report_tokens // judged, judged))
    local = local_settings(job, length)
    tried = 1 + plan_local_trials(local).steps / local.steps  # the steps of one more rate
    variants = 3 * FORWARD * trained * (own / shape.num_layers) * VARIANT * tried
    blocks = scored_blocks(job, space)
    dropped = 0 if job.space.formats_alone else 3 * shape.num_layers
    if are_estimated(job):
        # The backward pass takes no gradient of weights: one forward more. The blocks that are checked run to the end.
        by_block = min(workers, max(1, score_tokens // SMALLEST_SHARD))
        scored = work(
            score_tokens * (2 + CHECKED) * forward,
            judged,
            by_block,
            2 * score_shards * reads.whole,
            2 * score_shards,
        )
    else:
        by_block = by_layer
        most = max((len(layer) for layer in space), default=1) + 1
        number_bytes = 4 if job.hardware.device == "cpu" else shape.dtype_bytes
        runs = math.ceil(score_tokens * most * number_bytes * shape.hidden / machine.held_bytes)
        scored = work(
            score_tokens * blocks * FORWARD * (own / 2 + head),
            judged,
            by_block,
            score_shards * reads.through(shape.num_layers - 1) + sum(reads.scored(i, runs) for i in range(len(space))),
            score_shards + shape.num_layers,
        )
    forms = len(job.space.formats.choices)
    rounding = forms * (whole - ends_parameters(shape)) / ROUNDED_PER_SECOND
    read_by_matrices = bool(forms) * INPUT_TOKENS * forward
    pool = 4 * job.solve.pool + dropped + SWAPPED
    timed = _TimedModels(parent, job, machine, length)

    def sampling(tokens: int, length: int) -> Expected:
        """Of a text that the parent writes: each piece a token of all its sequences at a time."""
        rows, at_once = rows_written(tokens, length)
        step = (shape.num_layers + 1) * STEP * machine.step_seconds(length)
        pieces = -(-rows // at_once)
        steps = Expected(pieces * length * step / min(workers, pieces), pieces * length * step)
        computed = work(length * rows * forward, length, min(workers, pieces), pieces * reads.whole, pieces)
        return steps + computed

    def alone(seconds: float) -> Expected:
        """Of what has a node for itself."""
        return Expected(seconds, seconds * workers)

    by_the_clock, whole_models = any(map(is_measured, job.budget)), bool(job.recover.tokens)
    written = [sampling(*each) for each in sampled_lengths(job).values()]
    start = Expected(START_SECONDS)  # what is started holds nothing yet
    shards = len(shard_ranges(max(1, job.distill.tokens // length), length)) if trained else 0
    summed = sum(bool(any(v.trained for v in layer)) for layer in space)
    groups = -(-pool // GROUP) * score_shards
    share = GUIDED if is_guided(job) else 1.0
    judged_parts = scored.scaled((1 + GUIDED) / JUDGED_SHARE) if is_guided(job) else Expected(0)
    # As assembled on the report text; after recovery beside the parent on both; times that are not there yet.
    figures = models * (3 * report_tokens + 2 * score_tokens if whole_models else report_tokens) * forward
    figure_pieces = models * (report_shards * (2 if whole_models else 1) + score_shards * whole_models)
    continued = _continuing(shape.num_layers, machine.step_seconds(judged))
    return {
        **({"sample": sum(written, start)} if written else {}),
        "measure": (Expected(0) if written else start) + alone(timed.subblocks(space)),
        "distill": work(
            bool(trained) * job.distill.tokens * (FORWARD * own + share * variants),
            length,
            by_layer,
            shards * reads.through(shape.num_layers) + 2 * summed * reads.layer,
            shards + 2 * summed,
        )
        + judged_parts,
        "score": scored
        + work(read_by_matrices, judged, by_layer)
        + Expected(rounding / by_layer, rounding, parts={"computing": rounding}),
        "assemble": work(score_tokens * pool * forward, judged, workers, groups * 2 * reads.whole, groups)
        + trainings(job.recover.probed, probe_tokens(job))
        + trainings(ahead, job.recover.tokens, job.recover.probed)
        + alone(timed.beside_parent(1 + job.recover.probed) if by_the_clock else 0),
        "recover": trainings(models - ahead, job.recover.tokens),
        "evaluate": work(figures, judged, workers, figure_pieces * (1 + CHILD) * reads.whole, figure_pieces)
        + alone(0 if by_the_clock else timed.beside_parent(models))  # candidates and baselines were timed before
        + Expected(continued, continued),
        "export": Expected(whole * shape.dtype_bytes / STORED_BYTES_PER_SECOND, read_bytes=reads.whole),
    }


@dataclass(frozen=True)
class Reads:
    """Bytes of a parent's weights that pieces read.

    Args:
        ends: embedding, final norm and head.
        layer: one layer, on average.
        num_layers: that there are.
    """

    ends: float
    layer: float
    num_layers: int

    @classmethod
    def of(cls, shape: Shape) -> Reads:
        """Of a parent as it is stored."""
        layers = (
            parameters(shape.parent_entry(index, slot), slot, shape)
            for index in range(shape.num_layers)
            for slot in SLOTS
        )
        return cls(
            ends_parameters(shape) * shape.dtype_bytes,
            sum(layers) * shape.dtype_bytes / shape.num_layers,
            shape.num_layers,
        )

    @property
    def whole(self) -> float:
        """The parent once."""
        return self.through(self.num_layers)

    def through(self, layers: int) -> float:
        """One text carried from its tokens through the first layers."""
        return self.ends + layers * self.layer

    def scored(self, layer: int, runs: int) -> float:
        """The blocks of one layer, from the boundary before it to the end, in so many runs over the layers."""
        return self.ends + runs * (self.num_layers - layer) * self.layer


def variant_tokens_of(job: Job, variants: int) -> int:
    """The tokens that so many variants are expected to be trained on, of all together."""
    return round(variants * job.distill.tokens * (GUIDED if is_guided(job) else 1))


def is_guided(job: Job) -> bool:
    """Whether variants are trained in parts, so that some are left."""
    return job.distill.guided and len(part_ends(local_settings(job, job.data.distill.sequence_length).steps)) > 1


def expected_cost(job: Job, expected: Expected) -> Cost:
    """What the workers of a stage hold."""
    share = resources_of(job)
    return Cost.held(share.cpus, share.gpus, expected.worker_seconds)


def _continuing(layers: int, step_seconds: float) -> float:
    """Seconds in which parent and child continue the prompts of the report, all of them at once."""
    return (1 + CHILD) * ADDED_TOKENS * (layers + 1) * STEP * step_seconds


def _ahead(job: Job, places: int, models: int) -> int:
    """Baselines that are trained as a whole beside the first probes."""
    probes = min(job.recover.probed, AT_ONCE)
    if not (probes and job.recover.tokens and job.recover.workers == 1):
        return 0
    return most_ahead(places, probes, probe_tokens(job) / job.recover.tokens, models - 1)


def num_models(job: Job) -> int:
    """The child and its baselines: what is recovered."""
    return 2 if job.space.formats_alone else 3


def token_seconds(parent: Described, length: int) -> float:
    """Of the whole parent, head included, forward on one thread, for each token of sequences of a length."""
    shape = parent.shape
    numbers = working(shape) + shape.vocab * shape.hidden
    return FORWARD * numbers / ThisCpu(parent).operations_per_second(length)


def working(shape: Shape) -> int:
    """Numbers of all layers that a token is computed with."""
    return sum(
        working_parameters(shape.parent_entry(layer, slot), slot, shape)
        for layer in range(shape.num_layers)
        for slot in SLOTS
    )


def judged_tokens(job: Job) -> tuple[int, int]:
    """Tokens of the score text and of the report text at most: whole sequences, one at least."""
    length, tokens = judged_length(job), job.data.validate.tokens
    score, report = (-(-max(share, length) // length) * length for share in (tokens * 3 // 4, tokens // 4))
    return score, report


def scored_blocks(job: Job, space: Space) -> int:
    """Blocks of the score table: each variant beside the parent's other slot, and the pairs."""
    return sum(len(layer) - len(SLOTS) for layer in space) + job.score.pairs


def local_workers(job: Job) -> int:
    """Workers of a job without `max_workers` on this machine: as many as its CPUs hold."""
    return max(1, usable_cpus() // job.cluster.cpus_per_worker)


class _TimedModels:
    """Seconds that timing takes, in all scenarios together; none where a cost table is given."""

    def __init__(self, parent: Described, job: Job, machine: Machine, length: int) -> None:
        self.parent = parent
        self.operations_per_second, self.step_seconds = (
            machine.operations_per_second(length),
            machine.step_seconds(length),
        )
        self.cpus = usable_cpus() if job.hardware.device == "cpu" else 1
        self.scenarios = job.hardware.scenarios if job.hardware.costs is None else ()

    def subblocks(self, space: Space) -> float:
        """Of every distinct entry, as a model of some copies, and of a model that has only the ends."""
        shape = self.parent.shape
        entries = {entry_key(v.slot, v.entry(shape, layer)) for layer, held in enumerate(space) for v in held}
        return self._seconds([*[COPIES / len(SLOTS)] * len(entries), 0])

    def beside_parent(self, number: int) -> float:
        """Of so many whole models, each in turns with the parent."""
        layers = self.parent.shape.num_layers
        return number * self._seconds([layers, CHILD * layers])

    def _seconds(self, models: list[float]) -> float:
        rounds = (self._round(scenario, layers) for scenario in self.scenarios for layers in models)
        return (ROUNDS + 1) * sum(rounds)

    def _round(self, scenario: Scenario, layers: float) -> float:
        """One model of so many layers: the prompts, then the steps, which are sampled in long generations."""
        shape, rate = self.parent.shape, self.operations_per_second * min(scenario.threads, self.cpus)
        numbers = sum(working_parameters(shape.parent_entry(0, slot), slot, shape) for slot in SLOTS) * layers
        # Embedding, final norm and head are many small calls, like a layer's, beside the head's product.
        calls = (layers + 1) * STEP * self.step_seconds
        head = FORWARD * scenario.batch_size * shape.vocab * shape.hidden / rate
        step = calls + head + FORWARD * scenario.batch_size * numbers / rate
        contexts, steps = [scenario.prefill], scenario.generate
        if steps >= 3 * SAMPLED_STEPS:
            last = scenario.prefill + steps - SAMPLED_STEPS
            contexts, steps = [scenario.prefill, (scenario.prefill + last) // 2, last], 3 * SAMPLED_STEPS
        prefill = FORWARD * scenario.batch_size * sum(contexts) * numbers / rate + len(contexts) * (calls + head)
        return prefill + steps * step
