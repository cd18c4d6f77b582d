"""Times of models on the device, whatever engine runs them: rounds in turns, and what they add up to.

One thread on a CPU is timed by its own CPU time: what else runs on the machine takes turns with it and is not counted.
With more threads, and on a GPU, it is the wall clock. Models of one comparison take turns, in decoding step by step:
what slows the machine down slows all of them, and on a shared one that changes ten times a second. What is reported is
the median over the rounds, and how sure it is. Where times scatter more rounds are taken, within bounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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
        """What times are read from."""
        return clock_of(device, self.threads)


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


def clock_of(device: str, threads: int) -> Literal["thread", "wall"]:
    """What times are read from: with one thread on a CPU all work is in the calling thread."""
    return "thread" if device == "cpu" and threads == 1 else "wall"


class Bench(Protocol):
    """An engine with the models of one comparison: it runs them in turns, and reads its own clock."""

    def prefill(self, names: Sequence[str]) -> list[int]:
        """Lets go of what runs, starts these models anew and reads the prompts; ns of each, up to its first token."""

    def extend(self, context: int) -> None:
        """Reads on in what runs until caches hold so many tokens; not timed."""

    def steps(self, count: int) -> list[int]:
        """So many tokens further in what runs, in turns; ns of each model, all its steps together."""


def take_rounds(
    names: Sequence[str],
    bench: Bench,
    workload: Workload,
    on_round: Callable[[float], None] = lambda share: None,
    patience_seconds: float = PATIENCE_SECONDS,
    together: bool = True,
) -> dict[str, list[tuple[int, int]]]:
    """(prefill ns, mean decode step ns) of every model in every round, one round of warm-up excepted.

    The order turns from round to round.

    Args:
        names: the models; the others are judged by their times relative to the first.
        bench: runs them.
        on_round: is told after every round which share of the rounds is done, of all that there may be where times
            have not settled.
        patience_seconds: once it is over no more rounds are begun, but for `LEAST_ROUNDS`.
        together: whether all models run at once, with a cache each. Else one is started when its turn comes.
    """
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    begun = time.monotonic()
    for number in range(-1, ROUNDS_AT_MOST):
        turn = number % len(names)
        order = [*names[turn:], *names[:turn]]
        for group in [order] if together else [[name] for name in order]:
            times = _one_round(bench, group, workload)
            for name, one in zip(group, times, strict=True):
                found[name] += [one] if number >= 0 else []
        done = number + 1
        late = time.monotonic() - begun > patience_seconds
        if done >= LEAST_ROUNDS and (late or (done >= ROUNDS and _settled(found, workload))):
            break
        on_round((done + 1) / ((ROUNDS if done < ROUNDS else ROUNDS_AT_MOST) + 1))
    on_round(1.0)
    return found


def _one_round(bench: Bench, names: Sequence[str], workload: Workload) -> list[tuple[int, int]]:
    prompt, generate = workload.prefill, workload.generate
    prefills = bench.prefill(names)
    if generate < 3 * SAMPLED_STEPS:
        return [(p, total // generate) for p, total in zip(prefills, bench.steps(generate), strict=True)]
    last = prompt + generate - SAMPLED_STEPS
    sampled = []
    for context in (prompt, (prompt + last) // 2, last):
        bench.extend(context)
        sampled.append([total // SAMPLED_STEPS for total in bench.steps(SAMPLED_STEPS)])
    decodes = [round((a + 2 * b + c) / 4) for a, b, c in zip(*sampled, strict=True)]
    return list(zip(prefills, decodes, strict=True))


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
