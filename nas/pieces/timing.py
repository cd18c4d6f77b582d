"""Times of models on the device, as the export runs: eager, with its own cache, greedy.

One thread on a CPU is timed by its own CPU time: what else runs on the machine takes turns with it and is not counted.
With more threads, and on a GPU, it is the wall clock. Models of one comparison take turns, in decoding step by step:
what slows the machine down slows all of them, and on a shared one that changes ten times a second. What is reported is
the median over the rounds, and how sure it is. Where times scatter more rounds are taken, within bounds.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from inlay.nas.modeling import InlayConfig, InlayForCausalLM

LEAST_ROUNDS = 3
"""Rounds that are taken however long they last."""
ROUNDS = 5
ROUNDS_AT_MOST = 15
SETTLED = 0.01
"""Standard error of every model's runtime relative to the first one's at which `ROUNDS` are enough."""
PATIENCE_SECONDS = 180.0
"""Wall clock after which no more rounds are begun: a machine that others hold must not measure for ever."""
SAMPLED_STEPS = 4
"""Decode steps that are timed at the first, the middle and the last context; fewer than three times as many are all
run."""
ERROR_OF_QUARTILES = 1.2533 / 1.349
"""Standard error of a median from the distance between the quartiles, over the root of the count, normal scatter."""


@dataclass(frozen=True)
class Workload:
    """A scenario as the timer needs it.

    Args:
        batch_size: sequences at once, B.
        prefill: prompt length P, tokens.
        generate: decode steps G.
        threads: CPU threads of torch.
    """

    batch_size: int
    prefill: int
    generate: int
    threads: int

    def clock(self, device: str) -> Literal["thread", "wall"]:
        """What times are read from: with one thread on a CPU all work is in the calling thread."""
        return "thread" if torch.device(device).type == "cpu" and self.threads == 1 else "wall"


@dataclass(frozen=True)
class Times:
    """One model under one workload, nanoseconds.

    Args:
        prefill_ns: reading the prompts, up to the first token.
        decode_ns: the mean decode step over growing contexts.
        spread_ns: half the interquartile range of `runtime_ns` over the rounds.
    """

    prefill_ns: int
    decode_ns: int
    spread_ns: int
    generate: int

    @property
    def runtime_ns(self) -> int:
        """prefill + G decode steps."""
        return self.prefill_ns + self.generate * self.decode_ns


def random_model(
    config: InlayConfig, dtype: torch.dtype, device: torch.device, ends: InlayForCausalLM | None = None
) -> InlayForCausalLM:
    """A model of this shape with random weights: times do not depend on their values.

    Embedding and head are those of `ends` where it is given, so that models of one comparison hold them once.
    """
    torch.manual_seed(0)
    with device, _default_dtype(dtype):
        model: Any = InlayForCausalLM(config)
    if ends is not None:
        model.model.embed_tokens, model.lm_head = ends.model.embed_tokens, ends.lm_head
    built: InlayForCausalLM = model.to(device, dtype).eval()
    return built


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Weights are made in the type that they are timed in: in float32 first, a model of bfloat16 takes three times as
    much memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rounds_of(
    models: Mapping[str, Any],
    workload: Workload,
    device: torch.device,
    on_round: Callable[[float], None] = lambda share: None,
    patience_seconds: float = PATIENCE_SECONDS,
    together: bool = True,
) -> dict[str, list[tuple[int, int]]]:
    """(prefill ns, mean decode step ns) of every model in every round, one round of warm-up excepted.

    The order turns from round to round.

    Args:
        models: the others are judged by their times relative to the first.
        on_round: is told after every round which share of the rounds is done, of all that there may be where times
            have not settled.
        patience_seconds: once it is over no more rounds are begun, but for `LEAST_ROUNDS`.
        together: whether all models, with a cache each, are held at once. Else a model is asked for when its turn
            comes, so that a mapping may build it anew, and is let go after its round.
    """
    torch.set_num_threads(workload.threads)
    names = list(models)
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(0)
    vocab = models[names[0]].config.vocab_size
    longest = workload.prefill + workload.generate
    ids_BT = torch.randint(0, vocab, (workload.batch_size, longest), generator=generator).to(device)
    clock = workload.clock(str(device))
    timer = _Timer(ids_BT, workload, _reader(clock, device), 1 if clock == "thread" else SAMPLED_STEPS)
    begun = time.monotonic()
    for number in range(-1, ROUNDS_AT_MOST):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        for group in [order] if together else [[name] for name in order]:
            times = timer.times([models[name] for name in group])
            for name, one in zip(group, times, strict=True):
                found[name] += [one] if number >= 0 else []
        done = number + 1
        late = time.monotonic() - begun > patience_seconds
        if done >= LEAST_ROUNDS and (late or (done >= ROUNDS and _settled(found, workload))):
            break
        on_round((done + 1) / ((ROUNDS if done < ROUNDS else ROUNDS_AT_MOST) + 1))
    on_round(1.0)
    return found


def summarise(rounds: Sequence[tuple[int, int]], workload: Workload) -> Times:
    """Medians over the rounds, with the spread of the runtime."""
    prefill = statistics.median(p for p, _ in rounds)
    decode = statistics.median(d for _, d in rounds)
    first, _, third = statistics.quantiles(runtimes(rounds, workload), n=4)
    return Times(round(prefill), round(decode), round((third - first) / 2), workload.generate)


def runtimes(rounds: Sequence[tuple[int, int]], workload: Workload) -> list[int]:
    """Prefill and all decode steps of every round, ns."""
    return [prefill + workload.generate * decode for prefill, decode in rounds]


def relative_error(values: Sequence[float]) -> float:
    """The standard error of the median of at least two values, relative to it; from the quartiles, so that a few
    values that are far off do not decide it."""
    first, median, third = statistics.quantiles(values, n=4)
    return ERROR_OF_QUARTILES * (third - first) / math.sqrt(len(values)) / median


def _settled(found: Mapping[str, Sequence[tuple[int, int]]], workload: Workload) -> bool:
    base, *others = (runtimes(rounds, workload) for rounds in found.values())
    if not others:
        return relative_error(base) <= SETTLED
    pairs = ([own / first for own, first in zip(other, base, strict=True)] for other in others)
    return all(relative_error(values) <= SETTLED for values in pairs)


@dataclass(frozen=True)
class _Timer:
    """Takes one run of each of some models, all in turns: their prompts, then their decode steps.

    Args:
        ids_BT: token ids of the longest context.
        workload: what a run is.
        read: the clock.
        steps: decode steps between two readings: each costs a GPU its queue.
    """

    ids_BT: torch.Tensor
    workload: Workload
    read: Callable[[], int]
    steps: int

    @torch.inference_mode()
    def times(self, models: Sequence[Any]) -> list[tuple[int, int]]:
        """(prefill ns, mean decode step ns) of each model."""
        prompt, generate = self.workload.prefill, self.workload.generate
        runs = [_Run(model) for model in models]
        prefills = []
        for run in runs:
            start = self.read()
            run.prefill(self.ids_BT[:, :prompt])
            prefills.append(self.read() - start)
        if generate < 3 * SAMPLED_STEPS:
            return list(zip(prefills, self._steps(runs, generate), strict=True))
        last = prompt + generate - SAMPLED_STEPS
        first, middle, end = (self._at(runs, context) for context in (prompt, (prompt + last) // 2, last))
        decodes = [round((a + 2 * b + c) / 4) for a, b, c in zip(first, middle, end, strict=True)]
        return list(zip(prefills, decodes, strict=True))

    def _at(self, runs: Sequence[_Run], context: int) -> list[int]:
        for run in runs:
            run.extend(self.ids_BT, context)
        return self._steps(runs, SAMPLED_STEPS)

    def _steps(self, runs: Sequence[_Run], count: int) -> list[int]:
        """Mean time of a step of each run."""
        spent = [0] * len(runs)
        for done in range(0, count, self.steps):
            for number, run in enumerate(runs):
                start = self.read()
                for _ in range(min(self.steps, count - done)):
                    run.step()
                spent[number] += self.read() - start
        return [total // max(1, count) for total in spent]


class _Run:
    """A model that generates, greedily, with its cache."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, ids_BP: torch.Tensor) -> None:
        output = self.model(ids_BP, past_key_values=self.model.new_cache(), use_cache=True, logits_to_keep=1)
        self.cache, self.token_B1 = output.past_key_values, output.logits[:, -1:].argmax(-1)

    def extend(self, ids_BT: torch.Tensor, context: int) -> None:
        """Reads on until the cache holds so many tokens."""
        seen = self.cache.get_seq_length()
        if seen < context:
            self.model(ids_BT[:, seen:context], past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def step(self) -> None:
        output = self.model(self.token_B1, past_key_values=self.cache, use_cache=True)
        self.token_B1 = output.logits[:, -1:].argmax(-1)


def _reader(clock: str, device: torch.device) -> Callable[[], int]:
    """The clock, ns; on a GPU it waits for what was sent there."""
    if clock == "thread":
        return time.thread_time_ns
    if device.type != "cuda":
        return time.perf_counter_ns

    def read() -> int:
        torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    return read
