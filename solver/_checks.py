"""What makes a problem well formed, each fault one sentence; and its choices as arrays."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from inlay.solver._parts import Choice, Limit, PairTerm
from inlay.solver._table import Table

Layers = Sequence[Sequence[Choice]]

MAX_CHOICES = 1_000_000
"""A problem with more choices than this is refused."""

MAX_TOTAL = 1 << 53
"""Totals stay below this, so that doubles add them up exactly."""


class ProblemError(ValueError):
    """The problem is malformed; the text names the layer, choice or limit, the value and the way out."""


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_names(names: Sequence[str], base_costs: Sequence[int], layers: Layers) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ProblemError(f"the cost `{name}` is listed twice in `cost_names`; give each cost one name")
    if len(base_costs) != len(names):
        raise ProblemError(
            f"`base_costs` has {len(base_costs)} values for {len(names)} costs; give one a cost, or none at all"
        )
    for name, value in zip(names, base_costs, strict=True):
        if not _is_whole(value) or value < 0:
            raise ProblemError(f"`base_costs` of `{name}` is {value!r}; costs are whole numbers of at least 0")
    if not layers:
        raise ProblemError("the problem has no layers; give at least one layer with one choice")
    total = 0
    for i, layer in enumerate(layers):
        total += len(layer)
        labels = [choice.label for choice in layer]
        if len(set(labels)) != len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ProblemError(f"layer {i} has the choice `{twice}` twice; give each choice of a layer its own label")
    if total > MAX_CHOICES:
        raise ProblemError(f"the problem has {total:,} choices; at most {MAX_CHOICES:,} can be solved: leave some out")


def build_table(names: Sequence[str], base_costs: Sequence[int], layers: Layers, pairs: Sequence[PairTerm]) -> Table:
    num_layers, num_costs = len(layers), len(names)
    sizes = np.array([len(layer) for layer in layers])
    layer = np.repeat(np.arange(num_layers), sizes)
    for i, choices in enumerate(layers):
        for choice in choices:
            if len(choice.costs) != num_costs:
                raise ProblemError(f"{_where(i, choice)}: {len(choice.costs)} costs for {num_costs} cost names")
    numbers = [(choice.score, choice.layers, *choice.costs) for choices in layers for choice in choices]
    values = np.array(numbers).reshape(len(numbers), num_costs + 2)
    if values.dtype != np.int64 or len(numbers) == 0:
        _refuse_fractions(names, layers)
    span = values[:, 1].copy()
    if (values[:, 2:] < 0).any() or (span < 1).any() or (layer + span > num_layers).any():
        _refuse_numbers(names, layers)
    amounts = np.delete(values, 1, axis=1)
    sizes_of = np.abs(np.maximum(amounts, -MAX_TOTAL))  # the least number of 64 bits has no absolute value
    largest = int(sizes_of.max())
    pair_total = sum(abs(int(pair.score)) for pair in pairs if _is_whole(pair.score))
    if (largest + 1) * num_layers + max(base_costs, default=0) + pair_total >= MAX_TOTAL:
        row, column = (int(place) for place in np.argwhere(sizes_of == largest)[0])
        where = _where(int(layer[row]), layers[layer[row]][row - int(sizes[: layer[row]].sum())])
        name, value = ("score", *names)[column], amounts[row, column]
        raise ProblemError(f"{where}: `{name}` is {value}, too large to add up below 2**53; use a coarser unit")
    _check_cover(layer, span, num_layers)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Table(layer, span, values[:, 0].copy(), np.ascontiguousarray(values[:, 2:]), first)


def _where(layer: int, choice: Choice) -> str:
    return f"layer {layer}, choice `{choice.label}`"


def _refuse_fractions(names: Sequence[str], layers: Layers) -> None:
    """Raise for the first number that is not a whole one of 64 bits, or for an empty layer."""
    for i, layer in enumerate(layers):
        if not layer:
            raise ProblemError(f"layer {i} has no choices; every layer needs at least one")
        for choice in layer:
            for name, value in (("score", choice.score), *zip(names, choice.costs, strict=True)):
                if not _is_whole(value):
                    raise ProblemError(f"{_where(i, choice)}: `{name}` is {value!r}; it has to be a whole number")
                if abs(value) >= MAX_TOTAL:
                    raise ProblemError(f"{_where(i, choice)}: `{name}` is {value}, too large; use a coarser unit")
            if not _is_whole(choice.layers):
                raise ProblemError(f"{_where(i, choice)}: it covers {choice.layers!r} layers; that is a whole number")


def _refuse_numbers(names: Sequence[str], layers: Layers) -> None:
    """Raise for the first negative cost, or choice that ends outside the model."""
    for i, layer in enumerate(layers):
        for choice in layer:
            for name, cost in zip(names, choice.costs, strict=True):
                if cost < 0:
                    raise ProblemError(f"{_where(i, choice)}: the cost `{name}` is {cost}; costs are at least 0")
            if not 1 <= choice.layers <= len(layers) - i:
                raise ProblemError(
                    f"{_where(i, choice)}: it covers {choice.layers} layers, but {len(layers) - i} are left "
                    "from there; a choice covers at least 1 layer and ends within the model"
                )


def _check_cover(layer: np.ndarray, span: np.ndarray, num_layers: int) -> None:
    covered = np.zeros(num_layers + 1, dtype=np.int64)
    np.add.at(covered, layer, 1)
    np.add.at(covered, layer + span, -1)
    bare = np.flatnonzero(np.cumsum(covered)[:-1] == 0)
    if len(bare):
        raise ProblemError(f"layer {bare[0]} has no choices; every layer needs at least one")
    reach = np.zeros(num_layers + 1, dtype=bool)
    reach[0] = True
    for start, end in zip(layer.tolist(), (layer + span).tolist(), strict=True) if int(span.max()) > 1 else ():
        reach[end] |= reach[start]
    if int(span.max()) > 1 and not reach[num_layers]:
        raise ProblemError("no sequence of choices covers each layer exactly once; add choices of single layers")


def check_limits(names: Sequence[str], limits: Sequence[Limit]) -> None:
    least: dict[str, int] = {}
    most: dict[str, int] = {}
    for limit in limits:
        if limit.name not in names:
            raise ProblemError(
                f"the limit `{limit.name}` is on no cost of the problem{did_you_mean(limit.name, names)}; "
                f"the costs are {', '.join(names) or 'none'}"
            )
        for side, value in (("upper", limit.upper), ("lower", limit.lower)):
            if value is not None and not _is_whole(value):
                raise ProblemError(f"the {side} limit on `{limit.name}` is {value!r}; limits are whole numbers")
        if limit.upper is not None:
            most[limit.name] = min(limit.upper, most.get(limit.name, limit.upper))
        if limit.lower is not None:
            least[limit.name] = max(limit.lower, least.get(limit.name, limit.lower))
    for name in least.keys() & most.keys():
        if least[name] > most[name]:
            raise ProblemError(
                f"the limits on `{name}` contradict each other: at least {least[name]} and at most {most[name]}; "
                "drop or move one"
            )


def check_pairs(layers: Layers, pairs: Sequence[PairTerm]) -> None:
    for pair in pairs:
        for layer, index in (pair.first, pair.second):
            if not 0 <= layer < len(layers) or not 0 <= index < len(layers[layer]):
                raise ProblemError(f"the pair term names choice {index} of layer {layer}, which does not exist")
        if pair.first[0] == pair.second[0]:
            raise ProblemError(f"a pair term joins two choices of layer {pair.first[0]}; pairs are across layers")
        if not _is_whole(pair.score):
            raise ProblemError(
                f"the pair {pair.first}, {pair.second} has the score {pair.score!r}; give a whole number"
            )


def check_others(names: Sequence[str], table: Table, others: Sequence[tuple[Sequence[str], Table]]) -> None:
    """Raise for the first alternative whose costs are called otherwise, or whose choices start or end otherwise."""
    for number, (theirs, other) in enumerate(others):
        same = len(other.layer) == len(table.layer) and (other.layer == table.layer).all()
        if tuple(theirs) != tuple(names) or not same or not (other.span == table.span).all():
            raise ProblemError(
                f"`others[{number}]` has other costs, or choices that start or end elsewhere; an alternative has the "
                "same layers, with as many choices in each, at other costs"
            )


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """` (did you mean \\`x\\`?)` for the nearest of `names`, or nothing."""
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""
