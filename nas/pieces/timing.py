"""Wall-clock times of models on the device, as the export runs: eager, with its own cache, greedy.

Models of one comparison take turns round by round, so that a machine that slows down slows all of them; what is
reported is the median over the rounds and half the distance between the quartiles. Where other work makes times
scatter, more rounds are taken, within bounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inlay.nas.modeling.configuration_inlay import InlayConfig
from inlay.nas.modeling.modeling_inlay import InlayForCausalLM

ROUNDS = 7
"""Rounds that are always taken."""
ROUNDS_AT_MOST = 21
SETTLED = 0.1
"""Spread over median of the runtime, for every model, at which no more rounds are needed."""
LONGEST_RUN = 48
"""Decode steps that are run one after the other; longer generations are sampled at growing contexts."""
SAMPLED_STEPS = 8
"""Steps timed at each sampled context."""


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
    with device:
        model: Any = InlayForCausalLM(config)
    if ends is not None:
        model.model.embed_tokens, model.lm_head = ends.model.embed_tokens, ends.lm_head
    built: InlayForCausalLM = model.to(device, dtype).eval()
    return built


def rounds_of(
    models: Mapping[str, Any],
    workload: Workload,
    device: torch.device,
    on_round: Callable[[float], None] = lambda share: None,
) -> dict[str, list[tuple[int, int]]]:
    """(prefill ns, mean decode step ns) of every model in every round, one round of warm-up excepted.

    The order turns from round to round. `on_round` is told between them which share of the rounds is done, of all that
    there may be where times have not settled.
    """
    torch.set_num_threads(workload.threads)
    names = list(models)
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(0)
    vocab = next(iter(models.values())).config.vocab_size
    longest = workload.prefill + workload.generate
    ids_BT = torch.randint(0, vocab, (workload.batch_size, longest), generator=generator).to(device)
    for number in range(-1, ROUNDS_AT_MOST):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times = _time_once(models[name], ids_BT, workload, device)
            if number >= 0:
                found[name].append(times)
        on_round((number + 2) / ((ROUNDS if number < ROUNDS else ROUNDS_AT_MOST) + 1))
        if number + 1 >= ROUNDS and all(_settled(summarise(own, workload)) for own in found.values()):
            break
    return found


def _settled(times: Times) -> bool:
    return times.spread_ns <= SETTLED * times.runtime_ns


def summarise(rounds: Sequence[tuple[int, int]], workload: Workload) -> Times:
    """Medians over the rounds, with the spread of the runtime."""
    prefill = statistics.median(p for p, _ in rounds)
    decode = statistics.median(d for _, d in rounds)
    runtimes = sorted(p + workload.generate * d for p, d in rounds)
    quarter = len(runtimes) // 4
    spread = (runtimes[-1 - quarter] - runtimes[quarter]) / 2
    return Times(round(prefill), round(decode), round(spread), workload.generate)


@torch.inference_mode()
def _time_once(model: Any, ids_BT: torch.Tensor, workload: Workload, device: torch.device) -> tuple[int, int]:
    prompt = ids_BT[:, : workload.prefill]
    start = _now(device)
    cache, token = _prefill(model, prompt)
    prefill_ns = _now(device) - start
    if workload.generate <= LONGEST_RUN:
        return prefill_ns, _decode(model, cache, token, workload.generate, device)
    last = workload.prefill + workload.generate - SAMPLED_STEPS
    steps = []
    for context in (workload.prefill, (workload.prefill + last) // 2, last):
        if context != workload.prefill:
            cache, token = _prefill(model, ids_BT[:, :context])
        steps.append(_decode(model, cache, token, SAMPLED_STEPS, device))
    return prefill_ns, round((steps[0] + 2 * steps[1] + steps[2]) / 4)


def _prefill(model: Any, ids_BP: torch.Tensor) -> tuple[Any, torch.Tensor]:
    output = model(ids_BP, past_key_values=model.new_cache(), use_cache=True, logits_to_keep=1)
    return output.past_key_values, output.logits[:, -1:].argmax(-1)


def _decode(model: Any, cache: Any, token_B1: torch.Tensor, steps: int, device: torch.device) -> int:
    start = _now(device)
    for _ in range(steps):
        output = model(token_B1, past_key_values=cache, use_cache=True)
        token_B1 = output.logits[:, -1:].argmax(-1)
    return (_now(device) - start) // steps


def _now(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()
