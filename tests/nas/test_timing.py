"""Times on the device: from which clock, how many rounds are taken, and what they add up to."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from inlay.nas.embedded import embedded_parent
from inlay.nas.engines.eager import random_model, rounds_of
from inlay.nas.engines.timing import LEAST_ROUNDS, ROUNDS, ROUNDS_AT_MOST, Workload, relative_error, summarise
from inlay.nas.families import open_parent

CPU = torch.device("cpu")
WORKLOAD = Workload(batch_size=1, prefill=4, generate=2, threads=1)


class Slowed(torch.nn.Module):
    """A model that does something else before each of its passes."""

    def __init__(self, model: Any, otherwise: Callable[[], object]) -> None:
        super().__init__()
        self.model, self.config, self.otherwise = model, model.config, otherwise

    def new_cache(self) -> Any:
        return self.model.new_cache()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.otherwise()
        return self.model(*arguments, **named)


def work(seconds: float) -> None:
    """Takes so much of the thread's own time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.fixture(scope="module")
def model() -> Any:
    config = open_parent(embedded_parent("pystdlib")).config
    return random_model(config, torch.float32, CPU)


def test_times_that_scatter_get_more_rounds_within_bounds(model: Any) -> None:
    shares: list[float] = []
    turns = itertools.cycle([*[0.01] * 5, *[0.08] * 4])  # three passes a round
    rounds = rounds_of({"unsteady": Slowed(model, lambda: work(next(turns)))}, WORKLOAD, CPU, on_round=shares.append)
    assert len(rounds["unsteady"]) == ROUNDS_AT_MOST
    assert all(0 < share <= 1 for share in shares)
    assert shares[-1] == 1


def test_no_more_than_the_least_rounds_are_taken_once_patience_is_over(model: Any) -> None:
    rounds = rounds_of({"one": model, "other": model}, WORKLOAD, CPU, patience_seconds=0.0)
    assert len(rounds["one"]) == len(rounds["other"]) == LEAST_ROUNDS


def test_every_model_has_as_many_rounds_and_medians_are_of_all(model: Any) -> None:
    rounds = rounds_of({"one": model, "other": model}, WORKLOAD, CPU)
    assert ROUNDS <= len(rounds["one"]) == len(rounds["other"]) <= ROUNDS_AT_MOST
    times = summarise([(10, 1), (30, 3), (20, 2)], WORKLOAD)
    assert (times.prefill_ns, times.decode_ns, times.runtime_ns) == (20, 2, 24)


@pytest.mark.slow
def test_what_one_thread_waits_for_is_not_its_time(model: Any) -> None:
    """As where other programs have the processor; more threads are timed by the wall clock, where waiting counts."""
    waiting = Slowed(model, lambda: time.sleep(1.0))
    one = rounds_of({"one": waiting}, WORKLOAD, CPU, patience_seconds=0.0)["one"]
    two = rounds_of({"two": waiting}, Workload(1, 4, 1, threads=2), CPU, patience_seconds=0.0)["two"]
    torch.set_num_threads(1)
    assert max(decode for _, decode in one) < 1e9
    assert min(decode for _, decode in two) > 1e9
    assert (WORKLOAD.clock("cpu"), Workload(1, 4, 1, 2).clock("cpu")) == ("thread", "wall")
    assert WORKLOAD.clock("cuda:1") == "wall"


def test_all_work_of_one_thread_is_in_the_thread_that_is_timed(model: Any) -> None:
    thread, process = time.thread_time(), time.process_time()
    rounds_of({"one": model}, WORKLOAD, CPU, patience_seconds=0.0)
    assert time.thread_time() - thread > 0.9 * (time.process_time() - process)


def test_long_generations_are_sampled_at_growing_contexts(model: Any) -> None:
    seen: list[int] = []

    class Watched(Slowed):
        def forward(self, ids: Any, **named: Any) -> Any:
            seen.append(named["past_key_values"].get_seq_length())
            return self.model(ids, **named)

    rounds_of({"one": Watched(model, lambda: None)}, Workload(1, 4, 40, 1), CPU, patience_seconds=0.0)
    a_round = [0, 4, 5, 6, 7, 8, 22, 23, 24, 25, 26, 40, 41, 42, 43]
    assert seen == a_round * (1 + LEAST_ROUNDS)


@pytest.mark.parametrize(
    ("threads", "together", "a_round"),
    [
        (1, True, "ab" + "ab" * 5),
        (2, True, "ab" + "aaaab" + "bbbab"),
        (1, False, "a" * 6 + "b" * 6),
    ],
)
def test_models_take_turns_step_by_step(model: Any, threads: int, together: bool, a_round: str) -> None:
    """After every step by the thread's own clock, after a few by the wall clock; else one after the other."""
    seen: list[str] = []
    models = {name: Slowed(model, lambda name=name: seen.append(name)) for name in "ab"}
    rounds_of(models, Workload(1, 4, 5, threads), CPU, patience_seconds=0.0, together=together)
    swapped = a_round.translate(str.maketrans("ab", "ba"))
    assert "".join(seen) == swapped + a_round + swapped + a_round


def test_the_error_of_a_median_shrinks_with_the_rounds_and_with_their_scatter() -> None:
    assert relative_error([5.0] * 5) == 0
    few = relative_error([98.0, 99.0, 100.0, 101.0, 102.0])
    assert few == pytest.approx(1.2533 / 1.349 * 3 / math.sqrt(5) / 100)
    assert relative_error([98.0, 99.0, 100.0, 101.0, 102.0] * 4) < 0.6 * few
    assert relative_error([96.0, 98.0, 100.0, 102.0, 104.0]) == pytest.approx(2 * few)


def test_a_model_is_made_in_the_type_that_it_is_timed_in(model: Any) -> None:
    made = random_model(model.config, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
