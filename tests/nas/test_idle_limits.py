"""Limits that the parent itself stays below, scenario by scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inlay.nas.families import open_parent
from inlay.nas.job import Scenario
from inlay.nas.job.budget import parse_budget
from inlay.nas.tables.idle_limits import idle_limits, parent_sizes
from inlay.nas.variants.storage import AsParent

PARENT = {
    "chat": {"runtime": 50_000_000, "throughput": 900.0, "memory": 12 * 2**20, "weights": 10 * 2**20},
    "long": {"runtime": 90_000_000, "throughput": 400.0, "memory": 24 * 2**20, "weights": 10 * 2**20},
}


def test_each_scenario_in_which_a_limit_limits_nothing() -> None:
    assert idle_limits(parse_budget({"memory": "20MiB"}), PARENT) == [
        "budget.memory: 20MiB limits nothing in chat: the parent itself takes 12 MiB; lower it, or write a ratio such "
        "as 0.6x"
    ]
    assert [text.split(":")[1] for text in idle_limits(parse_budget({"runtime": "200ms"}), PARENT)] == [
        " 200ms limits nothing in chat",
        " 200ms limits nothing in long",
    ]


def test_a_throughput_below_the_parents() -> None:
    assert idle_limits(parse_budget({"throughput": 500}), PARENT) == [
        "budget.throughput: 500 limits nothing in chat: the parent itself gives 900 tokens/s; raise it, or write a "
        "ratio such as 1.5x"
    ]


def test_what_is_the_same_in_all_scenarios_is_told_once() -> None:
    (text,) = idle_limits(parse_budget({"weights": "11MiB"}), PARENT)
    assert text.startswith("budget.weights: 11MiB limits nothing: the parent itself takes 10 MiB")


def test_limits_that_bind_ratios_and_what_is_not_known_yet_say_nothing() -> None:
    budget = parse_budget({"memory": "12MiB", "weights": "1x", "kv": "99GiB", "chat": {"runtime": "1ms"}})
    assert idle_limits(budget, PARENT) == []


def test_a_keyed_limit_is_of_its_scenario_alone() -> None:
    (text,) = idle_limits(parse_budget({"long": {"runtime": "1s"}}), PARENT)
    assert text.startswith("budget.long.runtime: 1s limits nothing in long")


def test_the_parents_sizes_are_those_of_its_tensors_and_caches(tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent("llama"))
    sizes = parent_sizes(parent.shape, Scenario(batch_size=3, prefill=8, generate=4), AsParent())
    # Width 32, 4 query and 2 key/value heads of 8, ffn 48, vocabulary 288, tied; 3 layers.
    numbers = 288 * 32 + 32 + 3 * (2 * 32 + 3072 + 4608)
    kv = 3 * 2 * 3 * 2 * 8 * 12 * parent.shape.dtype_bytes
    weights = numbers * parent.shape.dtype_bytes
    assert sizes == {"parameters": numbers, "weights": weights, "kv": kv, "memory": weights + kv}
