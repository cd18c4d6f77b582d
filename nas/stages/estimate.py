"""How long each stage of a search will take: operations counted, over the rate at which one layer runs here."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from inlay.cluster.capacity import usable_cpus
from inlay.cluster.cost import Cost
from inlay.distill.rates import plan_local_trials, plan_trials
from inlay.distill.settings import JUDGED
from inlay.nas.engines.timing import ROUNDS, SAMPLED_STEPS
from inlay.nas.engines.transformers_engine import COPIES
from inlay.nas.families import Parent, Slot
from inlay.nas.job import Job, Scenario
from inlay.nas.job.judged import judged_length
from inlay.nas.loop.excess import is_measured
from inlay.nas.loop.probes import probe_tokens
from inlay.nas.loop.prompts import ADDED_TOKENS
from inlay.nas.loop.resources import resources_of
from inlay.nas.loop.sampling import rows_written, sampled_lengths
from inlay.nas.loop.texts import held_out_batches
from inlay.nas.loop.training import global_settings
from inlay.nas.modeling import build_layer, make_context
from inlay.nas.pieces.boundaries import micro_batch
from inlay.nas.pieces.shards import SMALLEST_SHARD
from inlay.nas.pieces.subblock_times import entry_key
from inlay.nas.stages.calibrate import INPUT_TOKENS
from inlay.nas.stages.distill import local_settings
from inlay.nas.stages.estimates import CHECKED, are_estimated
from inlay.nas.stages.guided import JUDGED_SHARE, part_ends
from inlay.nas.tables.idle_limits import parent_sizes
from inlay.nas.variants import Variant, ends_parameters, parameters, variants_of
from inlay.nas.variants.storage import AsParent

CHILD = 0.8
"""Of the parent's operations and times, what one forward of a child is taken to need."""
VARIANT = 0.4
"""Of a layer's operations, what one variant of it is taken to need."""
BATCH_RUNS, TOKEN_RUNS = 3, 20
"""One layer of the parent is run so often on a micro-batch and on one token, and the fastest taken."""
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
FORWARD = 2.0
"""Operations for each number and token of a forward; a backward takes twice as many."""
SLOTS: tuple[Slot, Slot] = ("attention", "ffn")


@dataclass(frozen=True)
class Expected:
    """What a stage will take.

    Args:
        seconds: by the clock.
        worker_seconds: the same, added up over the workers that are held meanwhile.
    """

    seconds: float
    worker_seconds: float = 0.0

    @classmethod
    def shared(cls, work: float, workers: float) -> Expected:
        """So many seconds of one worker, done by several at once."""
        return cls(work / workers, work)

    def __add__(self, other: Expected) -> Expected:
        return Expected(self.seconds + other.seconds, self.worker_seconds + other.worker_seconds)


Space = list[tuple[Variant, ...]]
"""The variants of each layer."""


def expected_stages(job: Job, parent: Parent) -> dict[str, Expected]:
    """Of every stage, in the order in which they run, on workers like this machine's CPUs.

    One layer is timed for some tenths of a second, by its thread's CPU time, so that other work on the machine changes
    nothing. For other devices only the proportions mean something.
    """
    shape = parent.shape
    length, judged = job.data.distill.sequence_length, judged_length(job)
    space = [variants_of(job.space, shape, layer) for layer in range(shape.num_layers)]
    trained = sum(variant.trained for layer in space for variant in layer)
    whole = parent_sizes(shape, job.hardware.scenarios[0], AsParent())["parameters"]
    own, head = whole - ends_parameters(shape), shape.vocab * shape.hidden
    rates = {tokens: layer_rate(parent, tokens) for tokens in sorted({length, judged})}
    learning, judging = rates[length].operations_per_second, rates[judged].operations_per_second

    workers = job.cluster.max_workers or local_workers(job)
    by_layer = min(workers, shape.num_layers)
    models = num_models(job)
    # Child, uniform and depth are trained at once where there are workers for them, each on its own ranks.
    by_model = min(models, max(1, workers // job.recover.workers)) * job.recover.workers

    forward = FORWARD * (own + head)

    def whole_training(tokens: int) -> float:
        """Seconds of one model: its steps, those of one more rate, and its judgements; a backward is two forwards."""
        if not tokens:
            return 0.0
        settings = global_settings(job, tokens)
        batch_tokens = job.recover_batch * length
        steps = settings.steps + plan_trials(settings).steps
        judged = held_out_batches(job, tokens)  # by the parent once, and at the start and in the range test too
        forwards = steps * (1 + 3 * CHILD) + judged * (1 + (JUDGED + 2) * CHILD)
        return batch_tokens * forwards * forward / learning

    score_tokens, report_tokens = judged_tokens(job)
    local = local_settings(job, length)
    tried = 1 + plan_local_trials(local).steps / local.steps  # the steps of one more rate
    variants = 3 * FORWARD * trained * (own / shape.num_layers) * VARIANT * tried
    blocks = scored_blocks(job, space)
    dropped = 0 if job.space.formats_alone else 3 * shape.num_layers
    if are_estimated(job):
        # The backward pass takes no gradient of weights: one forward more. The blocks that are checked run to the end.
        scored = score_tokens * (2 + CHECKED) * forward
        by_block = min(workers, max(1, score_tokens // SMALLEST_SHARD))
    else:
        scored, by_block = score_tokens * blocks * FORWARD * (own / 2 + head), by_layer
    forms = len(job.space.formats.choices)
    rounding = forms * own / ROUNDED_PER_SECOND + bool(forms) * INPUT_TOKENS * forward / judging
    pool = 4 * job.solve.pool + dropped + SWAPPED
    timed = _TimedModels(parent, job, rates[length])

    def sampling(tokens: int, length: int) -> Expected:
        """Of a text that the parent writes: each piece a token of all its sequences at a time."""
        rows, at_once = rows_written(tokens, length)
        step = (shape.num_layers + 1) * STEP * rates[length].step_seconds
        pieces = -(-rows // at_once)
        work = length * (pieces * step + rows * forward / rates[length].operations_per_second)
        return Expected.shared(work, min(workers, pieces))

    def alone(seconds: float) -> Expected:
        """Of what has a node for itself."""
        return Expected(seconds, seconds * workers)

    by_the_clock, whole_models = any(map(is_measured, job.budget)), bool(job.recover.tokens)
    written = [sampling(*each) for each in sampled_lengths(job).values()]
    start = Expected(START_SECONDS)  # what is started holds nothing yet
    share = GUIDED if is_guided(job) else 1.0
    learnt = bool(trained) * job.distill.tokens * (FORWARD * own + share * variants) / learning
    judged_parts = is_guided(job) * (1 + GUIDED) * scored / JUDGED_SHARE / judging
    pooled = score_tokens * pool * forward / judging + job.recover.probed * whole_training(probe_tokens(job))
    # As assembled on the report text; after recovery beside the parent on both; times that are not there yet.
    figures = models * (3 * report_tokens + 2 * score_tokens if whole_models else report_tokens) * forward / judging
    return {
        **({"sample": sum(written, start)} if written else {}),
        "measure": (Expected(0) if written else start) + alone(timed.subblocks(space)),
        "distill": Expected.shared(learnt + judged_parts, by_layer),
        "score": Expected.shared(scored / judging, by_block) + Expected.shared(rounding, by_layer),
        "assemble": Expected.shared(pooled, workers)
        + alone(timed.beside_parent(1 + job.recover.probed) if by_the_clock else 0),
        "recover": Expected.shared(models * whole_training(job.recover.tokens), by_model),
        "evaluate": Expected.shared(figures, workers)
        + alone(timed.beside_parent(models - by_the_clock))
        + Expected.shared(_continuing(shape.num_layers, rates[judged]), 1),
        "export": Expected(whole * shape.dtype_bytes / STORED_BYTES_PER_SECOND),
    }


def variant_tokens_of(job: Job, variants: int) -> int:
    """The tokens that so many variants are expected to be trained on, of all together."""
    return round(variants * job.distill.tokens * (GUIDED if is_guided(job) else 1))


def is_guided(job: Job) -> bool:
    """Whether variants are trained in parts, so that some are left."""
    return job.distill.guided and len(part_ends(local_settings(job, job.data.distill.sequence_length).steps)) > 1


def stage_seconds(job: Job, parent: Parent) -> dict[str, float]:
    """Seconds of every stage by the clock, as `expected_stages` has them."""
    return {name: expected.seconds for name, expected in expected_stages(job, parent).items()}


def expected_cost(job: Job, expected: Expected) -> Cost:
    """What the workers of a stage hold."""
    share = resources_of(job)
    return Cost.held(share.cpus, share.gpus, expected.worker_seconds)


def _continuing(layers: int, rate: LayerRate) -> float:
    """Seconds in which parent and child continue the prompts of the report, all of them at once."""
    return (1 + CHILD) * ADDED_TOKENS * (layers + 1) * STEP * rate.step_seconds


def num_models(job: Job) -> int:
    """The child and its baselines: what is recovered."""
    return 2 if job.space.formats_alone else 3


def token_seconds(parent: Parent, length: int) -> float:
    """Of the whole parent, head included, forward on one thread, for each token of sequences of a length."""
    shape = parent.shape
    layers = (parameters(shape.parent_entry(i, slot), slot, shape) for i in range(shape.num_layers) for slot in SLOTS)
    return FORWARD * (sum(layers) + shape.vocab * shape.hidden) / layer_rate(parent, length).operations_per_second


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


@dataclass(frozen=True)
class LayerRate:
    """What one layer of the parent does on one thread here.

    Args:
        operations_per_second: on a micro-batch of sequences of one length.
        step_seconds: for one token of one sequence.
    """

    operations_per_second: float
    step_seconds: float


def layer_rate(parent: Parent, length: int) -> LayerRate:
    """Times the parent's first layer on a micro-batch of sequences of a length, and on one token."""
    shape, dtype, device = parent.shape, torch.float32, torch.device("cpu")
    attention, ffn = (shape.parent_entry(0, slot) for slot in SLOTS)
    layer = build_layer(parent.config, 0, attention, ffn, parent.layer_state(0), dtype)
    torch.set_num_threads(1)

    def seconds(batch: int, tokens: int, runs: int) -> float:
        context = make_context(parent.config, batch, tokens, dtype, device, [attention])
        hidden_BSD = torch.randn(batch, tokens, shape.hidden)
        times = []
        for _ in range(runs):
            start = time.thread_time()
            middle_BSD = hidden_BSD + layer.attention_update(hidden_BSD, context)
            layer.ffn_update(middle_BSD)
            times.append(time.thread_time() - start)
        return min(times)

    batch = micro_batch(length)
    numbers = sum(parameters(entry, slot, shape) for entry, slot in zip((attention, ffn), SLOTS, strict=True))
    with torch.inference_mode():
        return LayerRate(
            FORWARD * batch * length * numbers / seconds(batch, length, BATCH_RUNS), seconds(1, 1, TOKEN_RUNS)
        )


class _TimedModels:
    """Seconds that timing takes, in all scenarios together; none where a cost table is given."""

    def __init__(self, parent: Parent, job: Job, rate: LayerRate) -> None:
        self.parent, self.rate = parent, rate
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
        shape, rate = self.parent.shape, self.rate.operations_per_second * min(scenario.threads, usable_cpus())
        numbers = sum(parameters(shape.parent_entry(0, slot), slot, shape) for slot in SLOTS) * layers
        # Embedding, final norm and head are many small calls, like a layer's, beside the head's product.
        calls = (layers + 1) * STEP * self.rate.step_seconds
        head = FORWARD * scenario.batch_size * shape.vocab * shape.hidden / rate
        step = calls + head + FORWARD * scenario.batch_size * numbers / rate
        contexts, steps = [scenario.prefill], scenario.generate
        if steps >= 3 * SAMPLED_STEPS:
            last = scenario.prefill + steps - SAMPLED_STEPS
            contexts, steps = [scenario.prefill, (scenario.prefill + last) // 2, last], 3 * SAMPLED_STEPS
        prefill = FORWARD * scenario.batch_size * sum(contexts) * numbers / rate + len(contexts) * (calls + head)
        return prefill + steps * step
