"""Reading a bare table (CSV or Parquet): one row a choice, columns `layer`, `variant` and any numbers.

A column `layers` says how many consecutive layers a row covers; rows without a layer (empty or -1) are base costs that
every model has; a column `scenario` says for which workload a row's costs are. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inlay.nas.errors import UserError
from inlay.nas.problems import show
from inlay.nas.tables.files import BareTable
from inlay.solver import MAX_CHOICES

if TYPE_CHECKING:
    import pyarrow

KEYS = ("layer", "variant", "layers")
SCENARIO = "scenario"


def read_bare_table(path: Path) -> BareTable:
    """Reads and checks a table; UserError names the row by layer and variant, the value and the way out."""
    table = read_arrow(path)
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
    held = dict(zip(columns, table.columns, strict=True))
    num_scenarios = len(held[SCENARIO].unique()) if SCENARIO in held else 1
    if table.num_rows > MAX_CHOICES * num_scenarios:
        raise UserError(f"{name} has {table.num_rows:,} rows; at most {MAX_CHOICES:,} can be solved: leave some out")
    labels = ["" if label is None else str(label) for label in held["variant"].to_pylist()]
    layer = _whole(name, "layer", held["layer"], empty=-1)
    span = _whole(name, "layers", held["layers"], empty=1) if "layers" in held else np.ones_like(layer)
    if SCENARIO not in held:
        return _table(name, held, layer, span, labels)
    scenario = ["" if label is None else str(label).strip() for label in held.pop(SCENARIO).to_pylist()]
    parts = {}
    for one in dict.fromkeys(scenario):
        rows = np.flatnonzero([label == one for label in scenario])
        if not one:
            raise UserError(f"{name}: row {rows[0] + 1} has no `{SCENARIO}`; name it in every row")
        mine = {column: values.take(rows) for column, values in held.items()}
        where = f"{name}, scenario `{one}`"
        parts[one] = _table(where, mine, layer[rows], span[rows], [labels[row] for row in rows])
    return _joined(name, parts) if len(parts) > 1 else next(iter(parts.values()))


def _table(name: str, held: Mapping[str, Any], layer: np.ndarray, span: np.ndarray, labels: Sequence[str]) -> BareTable:
    is_base = layer == -1
    _check_keys(name, layer[~is_base], [label for label, base in zip(labels, is_base, strict=True) if not base], span)
    numbers, base, texts = _numbers(name, held, layer, labels)
    chosen = np.flatnonzero(~is_base)
    return BareTable(name, layer[chosen], span[chosen], [labels[row] for row in chosen.tolist()], numbers, base, texts)


def _joined(name: str, parts: Mapping[str, BareTable]) -> BareTable:
    """One table of all scenarios, in the order of the first one's rows; UserError where one lacks a choice."""
    (first_name, first), *others = parts.items()
    aligned = {first_name: first}
    keys = list(zip(first.layer.tolist(), first.span.tolist(), first.labels, strict=True))
    for other, part in others:
        place = {
            key: row for row, key in enumerate(zip(part.layer.tolist(), part.span.tolist(), part.labels, strict=True))
        }
        lacking = [(key, other) for key in keys if key not in place]
        lacking += [(key, first_name) for key in place.keys() - set(keys)]
        if lacking:
            (layer, _, label), where = min(lacking)
            raise UserError(
                f"{name}: scenario `{where}` has no row for layer {layer}, variant `{label}`; each scenario needs the "
                "same choices"
            )
        rows = np.array([place[key] for key in keys])
        numbers = {column: values[rows] for column, values in part.numbers.items()}
        aligned[other] = replace(part, layer=first.layer, span=first.span, labels=first.labels, numbers=numbers)
    return BareTable(
        name,
        first.layer,
        first.span,
        first.labels,
        {f"{one}.{column}": values for one, part in aligned.items() for column, values in part.numbers.items()},
        {f"{one}.{column}": value for one, part in aligned.items() for column, value in part.base.items()},
        first.texts,
        aligned,
    )


def read_arrow(path: Path) -> pyarrow.Table:
    """The rows of a CSV or Parquet file; UserError when it is neither."""
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
        if null[~is_base].all() and not null.all():  # what only base rows have is the same for every model
            null = null & is_base
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
