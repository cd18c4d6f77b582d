"""What a search answers when no architecture meets its budget."""

from __future__ import annotations

import pytest

from inlay.nas.errors import InfeasibleError
from inlay.nas.loop.solving import solve_pool
from inlay.solver import Choice, Limit, Problem

MS, MIB = 10**6, 2**20


def problem_of(*limits: Limit) -> Problem:
    """Two layers; at each one alternative is fast and large, the other slow and small."""
    layer = (
        Choice("parent", 0, (10 * MS, 10 * MIB)),
        Choice("fast", 5, (1 * MS, 10 * MIB)),
        Choice("small", 5, (10 * MS, 1 * MIB)),
    )
    return Problem(("runtime", "memory"), (layer, layer), (0, 0), limits)


def answer(*limits: Limit, time_limit: float = 10.0) -> str:
    with pytest.raises(InfeasibleError) as caught:
        solve_pool(problem_of(*limits), 1, 0.0, time_limit)
    return str(caught.value)


def test_limits_that_are_each_within_reach_but_not_together() -> None:
    said = answer(Limit("runtime", upper=8 * MS), Limit("memory", upper=8 * MIB))
    assert said == (
        "budget: no architecture of the search space meets it; "
        "runtime reaches 2 ms at least (0.100x of the parent; limit 8 ms), 20 ms (1.000x) with the others; "
        "memory reaches 2 MiB at least (0.100x of the parent; limit 8 MiB), 20 MiB (1.000x) with the others; "
        "in conflict: runtime at most 8 ms and memory at most 8 MiB; "
        "within reach together: runtime 11 ms (0.550x) and memory 11 MiB (0.550x); "
        "loosen it or widen `space`"
    )


def test_one_limit_out_of_reach() -> None:
    assert answer(Limit("runtime", upper=1 * MS)) == (
        "budget: no architecture of the search space meets it; "
        "runtime reaches 2 ms at least (0.100x of the parent; limit 1 ms); loosen it or widen `space`"
    )


def test_one_of_two_limits_out_of_reach_by_itself() -> None:
    said = answer(Limit("runtime", upper=1 * MS), Limit("memory", upper=20 * MIB))
    assert "runtime reaches 2 ms at least (0.100x of the parent; limit 1 ms), 2 ms (0.100x) with the others" in said
    assert "memory reaches 2 MiB at least (0.100x of the parent; limit 20 MiB), while the other limits" in said
    assert "in conflict" not in said
    assert "within reach together: runtime 2 ms (0.100x) and memory 20 MiB (1.000x)" in said
