"""What the solver's tests share: small random problems, and every architecture of them tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import strategies as st

from inlay.solver import Choice, Limit, PairTerm, Problem

Architecture = tuple[int, ...]


@pytest.fixture(scope="session")
def architectures() -> Callable[[Problem], list[tuple[int, dict[str, int], Architecture]]]:
    """Every architecture of a problem that meets its limits, as (objective, totals, indices or -1), best first."""
    return _architectures


@pytest.fixture(scope="session")
def problems() -> Callable[..., st.SearchStrategy[Problem]]:
    """A strategy of small problems: `spans` adds wide choices, `pairs` pair terms, `lower` lower limits."""
    return _problems


@pytest.fixture(scope="session")
def differs() -> Callable[..., bool]:
    """Whether two architectures of a problem fill at least a share of the layers, and at least one, differently."""
    return _differs


def _differs(problem: Problem, one: Architecture, other: Architecture, share: float) -> bool:
    same = sum(
        problem.layers[layer][index].layers for layer, index in enumerate(one) if index >= 0 and other[layer] == index
    )
    return len(one) - same >= max(1, share * len(one))


def _architectures(problem: Problem) -> list[tuple[int, dict[str, int], Architecture]]:
    found = []
    for choices in _paths(problem, 0):
        taken = {(layer, index) for layer, index in enumerate(choices) if index >= 0}
        picked = [problem.layers[layer][index] for layer, index in taken]
        objective = sum(choice.score for choice in picked)
        objective += sum(pair.score for pair in problem.pairs if pair.first in taken and pair.second in taken)
        totals = {
            name: base + sum(choice.costs[k] for choice in picked)
            for k, (name, base) in enumerate(zip(problem.cost_names, problem.base_costs, strict=True))
        }
        if all(
            (limit.upper is None or totals[limit.name] <= limit.upper)
            and (limit.lower is None or totals[limit.name] >= limit.lower)
            for limit in problem.limits
        ):
            found.append((objective, totals, choices))
    return sorted(found, key=lambda one: one[0])


def _paths(problem: Problem, layer: int) -> Iterator[Architecture]:
    if layer == len(problem.layers):
        yield ()
        return
    for index, choice in enumerate(problem.layers[layer]):
        for rest in _paths(problem, layer + choice.layers):
            yield (index, *[-1] * (choice.layers - 1), *rest)


@st.composite
def _problems(
    draw: st.DrawFn, spans: bool = False, pairs: bool = False, lower: bool = False, most_layers: int = 5
) -> Problem:
    num_layers = draw(st.integers(1, most_layers))
    num_costs = draw(st.integers(0, 3))
    largest = draw(st.sampled_from([2, 9, 10**6]))
    numbers = st.integers(0, largest)
    layers = []
    for layer in range(num_layers):
        size = draw(st.integers(1, 4))
        layers.append(
            tuple(
                Choice(
                    f"v{k}",
                    draw(st.integers(-largest // 4, largest)),
                    tuple(draw(st.lists(numbers, min_size=num_costs, max_size=num_costs))),
                    draw(st.integers(1, min(3, num_layers - layer))) if spans and k else 1,
                )
                for k in range(size)
            )
        )
    names = tuple(f"c{k}" for k in range(num_costs))
    base = tuple(draw(st.lists(st.integers(0, largest), min_size=num_costs, max_size=num_costs)))
    limits = []
    for k, name in enumerate(names):
        scale = base[k] + sum(max(choice.costs[k] for choice in layer) for layer in layers)
        if draw(st.booleans()):
            limits.append(Limit(name, upper=draw(st.integers(0, scale))))
        if lower and draw(st.booleans()):
            top = next((limit.upper for limit in limits if limit.name == name), None)
            limits.append(Limit(name, lower=draw(st.integers(0, scale if top is None else top))))
    terms = []
    if pairs and num_layers > 1:
        for _ in range(draw(st.integers(0, 5))):
            one, other = draw(st.lists(st.integers(0, num_layers - 1), min_size=2, max_size=2, unique=True))
            first = (one, draw(st.integers(0, len(layers[one]) - 1)))
            second = (other, draw(st.integers(0, len(layers[other]) - 1)))
            terms.append(PairTerm(first, second, draw(st.integers(-largest, largest))))
    return Problem(names, tuple(layers), base, tuple(limits), tuple(terms))
