"""Times on the device: how many rounds are taken, and what they add up to."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch

from inlay.nas.embedded import embedded_parent
from inlay.nas.families import open_parent
from inlay.nas.pieces.timing import ROUNDS, ROUNDS_AT_MOST, Workload, random_model, rounds_of, summarise

CPU = torch.device("cpu")
WORKLOAD = Workload(batch_size=1, prefill=4, generate=2, threads=1)


class Unsteady(torch.nn.Module):
    """A model that now and then waits as if other work had the processor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.turns = itertools.cycle((0.0, 0.0, 0.0, 0.2, 0.2, 0.2))

    def new_cache(self) -> Any:
        time.sleep(next(self.turns))
        return self.model.new_cache()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        time.sleep(0.01)
        return self.model(*arguments, **named)


@pytest.fixture(scope="module")
def model() -> Any:
    config = open_parent(embedded_parent("pystdlib")).config
    return random_model(config, torch.float32, CPU)


def test_times_that_scatter_get_more_rounds_within_bounds(model: Any) -> None:
    shares: list[float] = []
    rounds = rounds_of({"unsteady": Unsteady(model)}, WORKLOAD, CPU, on_round=shares.append)
    assert len(rounds["unsteady"]) == ROUNDS_AT_MOST
    assert all(0 < share <= 1 for share in shares)
    assert shares[-1] == 1


def test_every_model_has_as_many_rounds_and_medians_are_of_all(model: Any) -> None:
    rounds = rounds_of({"one": model, "other": model}, WORKLOAD, CPU)
    assert ROUNDS <= len(rounds["one"]) == len(rounds["other"]) <= ROUNDS_AT_MOST
    times = summarise([(10, 1), (30, 3), (20, 2)], WORKLOAD)
    assert (times.prefill_ns, times.decode_ns, times.runtime_ns) == (20, 2, 24)
