"""A bare table (CSV or Parquet) as the solver's problem: one row a choice, columns `layer`, `variant` and any numbers.

The solver works in integers. Whole columns enter as they are; others times a power of ten, and come back in their own
unit. A column `layers` says how many consecutive layers a row covers; rows without a layer (empty or -1) are base costs
that every model has. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inlay.nas.errors import UserError
from inlay.nas.job.problems import did_you_mean, show
from inlay.nas.job.quantities import (
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
from inlay.solver import MAX_CHOICES, MAX_TOTAL, Choice, Problem

if TYPE_CHECKING:
    import pyarrow

SCORES = ("score", "kl_nats")
"""What is minimised when nothing is named."""

SCORE_DIGITS = 9
"""Scores count in units of 1e-9, unless they are whole, very small or very large."""

DIGITS = 12
"""So many digits of a column's largest value are kept."""

PARENT = "parent"
KEYS = ("layer", "variant", "layers")
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
    """A table that was read and checked: `layer`, `span` and `labels` by row, `numbers` by column and row."""

    name: str
    layer: np.ndarray
    span: np.ndarray
    labels: Sequence[str]
    numbers: Mapping[str, np.ndarray]
    base: Mapping[str, int | float]
    texts: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """How many layers the choices cover."""
        return int((self.layer + self.span).max())

    def find(self, column: str, option: str) -> str:
        """The name of a numeric column; UserError, which names the `option`, when there is none."""
        if column in self.numbers:
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
            if name in self.numbers:
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


def read_bare_table(path: Path) -> BareTable:
    """Reads and checks a table; UserError names the row by layer and variant, the value and the way out."""
    table = _read(path)
    name = path.name
    columns = [column.strip() for column in table.column_names]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"{name} has the column `{twice}` twice; give each column one name")
    for needed in KEYS[:2]:
        if needed not in columns:
            raise UserError(
                f"{name} has no column `{needed}`; a table has `layer`, `variant` and columns of numbers, with commas "
                f"between them in a CSV (found: {', '.join(map(show, columns[:8]))})"
            )
    if table.num_rows == 0:
        raise UserError(f"{name} has no rows; give each layer at least one")
    if table.num_rows > MAX_CHOICES:
        raise UserError(f"{name} has {table.num_rows:,} rows; at most {MAX_CHOICES:,} can be solved: leave some out")
    held = dict(zip(columns, table.columns, strict=True))
    labels = ["" if label is None else str(label) for label in held["variant"].to_pylist()]
    layer = _whole(name, "layer", held["layer"], empty=-1)
    span = _whole(name, "layers", held["layers"], empty=1) if "layers" in held else np.ones_like(layer)
    is_base = layer == -1
    _check_keys(name, layer[~is_base], [label for label, base in zip(labels, is_base, strict=True) if not base], span)
    numbers, base, texts = _numbers(name, held, layer, labels)
    chosen = np.flatnonzero(~is_base)
    return BareTable(name, layer[chosen], span[chosen], [labels[row] for row in chosen], numbers, base, texts)


def _read(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv, parquet

    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            return parquet.read_table(path)
        options = csv.ConvertOptions(
            null_values=[""], strings_can_be_null=False, column_types={"variant": pyarrow.string()}
        )
        table = csv.read_csv(path, convert_options=options)
        return table.rename_columns([str(column) for column in table.column_names])
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; give a table (CSV or Parquet) or a workspace") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a CSV or Parquet file") from error
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        empty = path.stat().st_size == 0
        why = "is empty" if empty else f"is neither a CSV table nor a Parquet file ({told[:160]})"
        raise UserError(f"{path.name} {why}; give a table with columns `layer`, `variant` and numbers") from error


def _whole(name: str, column: str, values: Any, empty: int) -> np.ndarray:
    """A key column as integers; null is `empty`."""
    found = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values.to_pylist()):
        number = empty if value is None or value == "" else value
        if isinstance(number, bool) or not isinstance(number, int | float) or number != number // 1:
            raise UserError(f"{name}: row {row + 1}: `{column}` is {show(value)}; write a whole number")
        if not -1 <= number <= MAX_CHOICES:
            raise UserError(f"{name}: row {row + 1}: `{column}` is {number}; layers are numbered from 0 without gaps")
        found[row] = int(number)
    return found


def _check_keys(name: str, layer: np.ndarray, labels: Sequence[str], span: np.ndarray) -> None:
    """Refuses gaps in the layers, unnamed variants and duplicates."""
    if len(layer) == 0:
        raise UserError(f"{name} has only base rows (layer empty or -1); give each layer at least one row")
    seen: set[tuple[int, str]] = set()
    for key in zip(layer.tolist(), labels, strict=True):
        if not key[1].strip():
            raise UserError(f"{name}: layer {key[0]} has a row without a `variant`; name it")
        if key in seen:
            raise UserError(f"{name}: layer {key[0]} has the variant `{key[1]}` twice; give each its own name")
        seen.add(key)
    missing = np.setdiff1d(np.arange(int(layer.max()) + 1), layer)
    if len(missing) and (span == 1).all():
        raise UserError(
            f"{name}: layer {missing[0]} has no choices; layers are numbered from 0 without gaps, and each needs a row"
        )


def _numbers(
    name: str, held: Mapping[str, Any], layer: np.ndarray, labels: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, int | float], tuple[str, ...]]:
    """The numeric columns of the choices, the sums of the base rows, and the names of columns that hold no numbers."""
    import pyarrow.types as kinds

    numbers: dict[str, np.ndarray] = {}
    base: dict[str, int | float] = {}
    texts = []
    is_base = layer == -1
    for column, values in held.items():
        if column in KEYS:
            continue
        if not (kinds.is_integer(values.type) or kinds.is_floating(values.type) or kinds.is_decimal(values.type)):
            texts.append(column)
            continue
        null = values.is_null().to_numpy(zero_copy_only=False)
        kind = np.int64 if kinds.is_integer(values.type) and not kinds.is_uint64(values.type) else np.float64
        array = np.array(values.fill_null(0).to_numpy(zero_copy_only=False), dtype=kind)
        wrong = np.flatnonzero((null & ~is_base) | ~np.isfinite(array))
        if len(wrong):
            row = int(wrong[0])
            where = "a base row" if is_base[row] else f"layer {layer[row]}, variant `{labels[row]}`"
            value = "empty" if null[row] else array[row]
            raise UserError(f"{name}: {where}: `{column}` is {value}; write a finite number or leave the column out")
        numbers[column] = array[~is_base]
        total = sum((Fraction(repr(value)) for value in array[is_base].tolist()), Fraction(0))
        base[column] = int(total) if total.denominator == 1 else float(total)
        if base[column] < 0:
            raise UserError(f"{name}: the base rows add up to {base[column]} of `{column}`; costs are at least 0")
    return numbers, base, tuple(texts)


def _integers(values: np.ndarray, scale: int) -> list[int]:
    if values.dtype == np.int64 and scale == 1:
        whole: list[int] = values.tolist()
        return whole
    rounded: list[int] = np.rint(values.astype(np.float64) * scale).astype(np.int64).tolist()
    return rounded
