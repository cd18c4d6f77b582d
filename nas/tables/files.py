"""A bare table as the solver's problem: one row a choice, any columns of numbers.

The solver works in integers. Whole columns enter as they are; others times a power of ten, and come back in their own
unit. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from inlay.nas.errors import UserError
from inlay.nas.problems import did_you_mean
from inlay.nas.quantities import (
    BYTE_UNITS,
    TIME_UNITS_NS,
    parse_bytes,
    parse_count,
    parse_nanoseconds,
    parse_number,
    show_bytes,
    show_count,
    show_seconds,
)
from inlay.solver import MAX_TOTAL, Choice, Problem

SCORES = ("score", "kl_nats")
"""What is minimised when nothing is named."""

SCORE_DIGITS = 9
"""Scores count in units of 1e-9, unless they are whole, very small or very large."""

DIGITS = 12
"""So many digits of a column's largest value are kept."""

PARENT = "parent"
TIMES = {unit: size for unit, size in TIME_UNITS_NS.items() if unit in ("ns", "us", "ms", "s")}
SIZES = {"bytes": 1, **{unit.lower(): size for unit, size in BYTE_UNITS.items() if unit != "B"}}


@dataclass(frozen=True)
class Column:
    """A column as the solver has it: integers, `scale` of which are one unit of the column.

    `kind` is how a value is shown: a time in `ns`, `bytes`, a `count`, or "": the plain number.
    """

    name: str
    scale: int = 1
    kind: str = ""

    def value(self, whole: int) -> int | float:
        """The solver's integer in the column's own unit."""
        return int(whole) if self.scale == 1 else int(whole) / self.scale

    def show(self, whole: int) -> str:
        """The solver's integer for reading."""
        if self.kind == "ns":
            return show_seconds(whole / 1e9)
        if self.kind == "bytes":
            return show_bytes(whole)
        if self.kind == "count":
            return show_count(whole)
        value = self.value(whole)
        return str(value) if isinstance(value, int) else f"{value:.6g}"

    def upper(self, amount: Fraction) -> int:
        """The largest integer within an upper limit of `amount` units."""
        return math.floor(amount * self.scale)

    def lower(self, amount: Fraction) -> int:
        """The least integer that reaches a lower limit of `amount` units."""
        return math.ceil(amount * self.scale)

    def parse(self, text: str) -> Fraction:
        """A limit as it is written, in the column's unit.

        `24GiB` and `20ms` are converted to the unit that the name ends in (`_ms`, `_bytes`, ...), else to bytes and
        nanoseconds; `2M` is a count. Raises ValueError with the words that follow the value.
        """
        if text[-1:].isdigit() or text[-1:] == ".":
            return Fraction(repr(parse_number(text)))
        unit = "" if "_per_" in self.name else self.name.rpartition("_")[2].lower()
        if unit in TIMES:
            return Fraction(parse_nanoseconds(text), TIMES[unit])
        if unit in SIZES:
            return Fraction(parse_bytes(text), SIZES[unit])
        for parse in (parse_count, parse_bytes, parse_nanoseconds):
            try:
                return Fraction(parse(text))
            except ValueError:
                continue
        raise ValueError("is not a number; write one such as 1200, 2M, 24GiB, 20ms or 0.6x")


@dataclass(frozen=True)
class BareTable:
    """A table that was read and checked: `layer`, `span` and `labels` by row, `numbers` by column and row.

    `scenarios` has the table of each workload by name, empty where there is only one; `numbers` and `base` of the whole
    are then called `chat.runtime_ms`.
    """

    name: str
    layer: np.ndarray
    span: np.ndarray
    labels: Sequence[str]
    numbers: Mapping[str, np.ndarray]
    base: Mapping[str, int | float]
    texts: tuple[str, ...]
    scenarios: Mapping[str, BareTable] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """How many layers the choices cover."""
        return int((self.layer + self.span).max())

    def find(self, column: str, option: str) -> str:
        """The name of a numeric column, or of one in each scenario; UserError, which names the `option`, if none is."""
        if column in self.numbers or any(column in part.numbers for part in self.scenarios.values()):
            return column
        if column in self.texts:
            raise UserError(f"{option}: column `{column}` of {self.name} holds something other than numbers")
        hint = did_you_mean(column, self.numbers)
        known = ", ".join(self.numbers) or "none"
        raise UserError(f"{option}: {self.name} has no column `{column}`; {hint}columns with numbers: {known}")

    def score(self, minimize: str | None) -> str:
        """The column to minimise: the one asked for, else `score` or `kl_nats`."""
        if minimize is not None:
            return self.find(minimize, "--minimize")
        for name in SCORES:
            if name in self.numbers or any(name in part.numbers for part in self.scenarios.values()):
                return name
        known = ", ".join(self.numbers) or "none"
        raise UserError(
            f"--minimize: {self.name} has neither `score` nor `kl_nats`; name the column to minimise ({known})"
        )

    @property
    def layer_without_parent(self) -> int | None:
        """The first layer that has no row named `parent`, None when all have one."""
        held = {int(self.layer[row]) for row in self._parent_rows()}
        return next((layer for layer in range(self.num_layers) if layer not in held), None)

    def parent(self, column: str) -> Fraction:
        """A column's total over the rows named `parent`, base included, exactly."""
        values = self.numbers[column]
        total = Fraction(repr(self.base.get(column, 0)))
        return sum((Fraction(repr(values[row].item())) for row in self._parent_rows()), total)

    def problem(self, minimize: str | None = None) -> tuple[Problem, Column, dict[str, Column]]:
        """The problem without limits, the column that is minimised, and the columns of its costs.

        Raises UserError for negative costs, and ProblemError for what the solver cannot take.
        """
        score = self.score(minimize)
        if score not in self.numbers:
            return self._with_common(score).problem(score)
        costs = list(self.numbers)
        for name in costs:
            if name != score and (self.numbers[name] < 0).any():
                row = int(np.flatnonzero(self.numbers[name] < 0)[0])
                raise UserError(
                    f"{self._where(row)}: `{name}` is {self.numbers[name][row]}; costs are at least 0, only the "
                    "minimised column may be below: correct it or leave the column out"
                )
        if (self.numbers[score] < 0).any():
            costs.remove(score)
        columns = {name: self._column(name, score=name == score) for name in self.numbers}
        amounts = {name: _integers(self.numbers[name], columns[name].scale) for name in columns}
        choices: list[list[Choice]] = [[] for _ in range(self.num_layers)]
        places = zip(self.layer.tolist(), self.labels, amounts[score], self.span.tolist(), strict=True)
        rows = list(zip(*(amounts[name] for name in costs), strict=True)) or [()] * len(self.labels)
        for (layer, label, value, span), held in zip(places, rows, strict=True):
            choices[layer].append(Choice(label, value, held, span))
        base = tuple(round(Fraction(repr(self.base.get(name, 0))) * columns[name].scale) for name in costs)
        problem = Problem(tuple(costs), tuple(map(tuple, choices)), base)
        return problem, columns[score], {name: columns[name] for name in costs}

    def _with_common(self, column: str) -> BareTable:
        """The table with a column of every scenario as one column; UserError where they do not say the same."""
        (first, values), *others = ((name, part.numbers[column]) for name, part in self.scenarios.items())
        for other, found in others:
            if (found != values).any():
                row = int(np.flatnonzero(found != values)[0])
                raise UserError(
                    f"{self._where(row)}: `{column}` is {values[row]} in scenario `{first}` and {found[row]} in "
                    f"`{other}`; minimise one of them, such as `{first}.{column}`, or let --any-scenario decide"
                )
        own = {f"{name}.{column}" for name in self.scenarios}
        numbers = {column: values, **{name: held for name, held in self.numbers.items() if name not in own}}
        return replace(self, numbers=numbers, base={column: self.scenarios[first].base[column], **self.base})

    def _parent_rows(self) -> list[int]:
        return [row for row, label in enumerate(self.labels) if self.span[row] == 1 and is_parent(label)]

    def _where(self, row: int) -> str:
        return f"{self.name}: layer {self.layer[row]}, variant `{self.labels[row]}`"

    def _column(self, name: str, *, score: bool) -> Column:
        scale, suffix = self._scale(name, score=score), name.rpartition("_")[2].lower()
        return Column(name, scale, suffix if scale == 1 and suffix in ("ns", "bytes") and name != suffix else "")

    def _scale(self, name: str, *, score: bool) -> int:
        """The power of ten that makes a column's values whole, exactly where twelve digits suffice."""
        values = np.append(self.numbers[name].astype(np.float64), float(self.base.get(name, 0)))
        largest = float(np.abs(values).max())
        if (values == np.rint(values)).all():
            if largest >= MAX_TOTAL:
                raise UserError(
                    f"{self.name}: column `{name}` has {largest:g}, too large to add up; use a coarser unit"
                )
            return 1
        room = math.floor(math.log10(MAX_TOTAL / (self.num_layers + 2) / (largest + 1e-300)))
        digits = max(0, min(room, DIGITS - 1 - math.floor(math.log10(largest))))
        if score:
            return int(10 ** (SCORE_DIGITS if largest >= 1e-3 and room >= SCORE_DIGITS else digits))
        exact = (k for k in range(digits) if (np.rint(values * 10.0**k) / 10.0**k == values).all())
        return int(10 ** next(exact, digits))


def is_parent(label: str) -> bool:
    """Whether a choice is the parent's own: `parent`, or `attention:parent + ffn:parent`."""
    return all(part.strip().rpartition(":")[2] == PARENT for part in label.split("+"))


def _integers(values: np.ndarray, scale: int) -> list[int]:
    if values.dtype == np.int64 and scale == 1:
        whole: list[int] = values.tolist()
        return whole
    rounded: list[int] = np.rint(values.astype(np.float64) * scale).astype(np.int64).tolist()
    return rounded
