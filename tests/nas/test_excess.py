"""When a measured time misses its limit: what the measurement cannot tell does not count."""

from __future__ import annotations

from inlay.nas.loop.excess import Excess, over_budget, within


def test_a_time_is_missed_only_by_more_than_the_tolerance_and_the_noise() -> None:
    sure, unsure = 0.002, 0.02
    assert not Excess("chat.runtime", "runtime", 1.019, sure).missed
    assert Excess("chat.runtime", "runtime", 1.025, sure).missed
    assert not Excess("chat.runtime", "runtime", 1.025, unsure).missed
    assert Excess("chat.runtime", "runtime", 1.045, unsure).missed


def test_no_noise_excuses_what_measures_far_above_its_limit() -> None:
    assert Excess("chat.runtime", "runtime", 1.06, 0.2).missed
    assert not Excess("chat.runtime", "runtime", 1.04, 0.2).missed


def test_sizes_are_exact_and_predictions_have_the_tolerance_alone() -> None:
    assert Excess("chat.memory", "memory", 1.0001).missed
    assert not Excess("chat.memory", "memory", 1.0).missed
    assert Excess("chat.runtime", "runtime", 1.021).missed
    both = [Excess("chat.memory", "memory", 1.0), Excess("chat.runtime", "runtime", 1.03, 0.001)]
    assert not within(both)
    assert over_budget(both) == {"chat.runtime": 1.03}
