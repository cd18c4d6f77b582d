"""A given cost table (`hardware.costs`), checked against the job and its parent before anything runs; no torch.

Its times are believed, since nothing here could take them: they belong to the device it was measured on. Its parameter
counts are held against the parent's, and what it says of its origin against the job, so that no other table is taken by
mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.nas.errors import UserError
from inlay.nas.families import Shape
from inlay.nas.job.sections import Hardware
from inlay.nas.problems import did_you_mean, show
from inlay.nas.tables.costs import ADDED, AT_END, COMPUTE, ENDS, CostTable, with_cache
from inlay.nas.tables.origin import origin_of, shape_values, workload_values
from inlay.nas.tables.reading import read_arrow
from inlay.nas.variants import SearchSpace, ends_parameters, parameters, variants_of
from inlay.nas.variants.storage import Storage

if TYPE_CHECKING:
    import pyarrow

FIELD = "hardware.costs"
NEEDED = ("scenario", "layer", "variant", *ADDED)
OPTIONAL = (COMPUTE, *AT_END.values())
TIMES = ("prefill_ns", "decode_ns", "runtime_ns")
LARGEST = 2**62


def given_costs(
    place: str,
    hardware: Hardware,
    form: str | None,
    shape: Shape | None,
    space: SearchSpace | None,
    storage: Storage | None,
    caches: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rows of the job's scenarios, in the job's order, numbers as integers.

    Args:
        place: a CSV or Parquet file with the columns of a workspace's `tables/costs.parquet`.
        hardware: the job's; its engine and its scenarios must be the table's, where that says what it was measured of.
        form: what `hardware.format` stands for; None where that is not known.
        shape: the parent's shape; None where that is not known.
        space: the search space; with `shape`, every variant of every layer must have its row.
        storage: how the job's engine keeps the parent: a table that says what it is of must have these bytes.
        caches: what keys and values may be stored in beside that: what has a cache must have its row for each.

    Raises:
        UserError: opened by `hardware.costs`: no such file, a column or row that is not there, a value that is no cost,
            a table of another parent, engine, format or workload.
    """
    scenarios = [scenario.name for scenario in hardware.scenarios]
    path = Path(place)
    if "://" in place or not path.is_file():
        raise _wrong(f"there is no file {place}; name a cost table (.csv or .parquet), or leave it out and measure")
    try:
        table = read_arrow(path)
        rows = table.to_pylist()
    except UserError as error:
        raise _wrong(str(error)) from None
    columns = [str(name).strip() for name in rows[0]] if rows else []
    if lacking := [name for name in NEEDED if name not in columns]:
        hint = did_you_mean(lacking[0], columns)
        found = f"its columns are {', '.join(columns)}" if columns else "it has no rows"
        raise _wrong(f"{path.name} has no column `{lacking[0]}` ({found}); {hint}{_WAY_OUT}")
    there = dict.fromkeys(str(row["scenario"]) for row in rows)
    if unknown := [name for name in scenarios if name not in there]:
        raise _wrong(
            f"{path.name} has no rows of the scenario {unknown[0]}, only of {', '.join(there)}; measure it with that "
            "scenario, or name the job's scenarios as the table does"
        )
    origin = _check_origin(path, table, hardware, form, shape)
    kept = [_checked(path, row) for name in scenarios for row in rows if str(row["scenario"]) == name]
    _check_rows(path, kept, scenarios)
    if space is not None and shape is not None:
        _check_against(path, kept, scenarios, space, shape, storage if origin else None, caches)
    return kept


def _check_origin(path: Path, table: pyarrow.Table, hardware: Hardware, form: str | None, shape: Shape | None) -> bool:
    """Whether the table says what it is of; if so, of this engine, format, parent and workload."""
    try:
        origin = origin_of(table)
    except UserError as error:
        raise _wrong(f"{path.name}: {error}") from None
    if origin is None:
        return False
    if origin.engine != hardware.engine:
        raise _wrong(
            f"{path.name} was measured with the engine {origin.engine}, and hardware.engine is {hardware.engine}; "
            "measure it with that engine, or take the table's"
        )
    if form is not None and origin.format != form:
        raise _wrong(
            f"{path.name} was measured in the format {origin.format}, and hardware.format is {form}; measure it in "
            "that format, or take the table's"
        )
    for name, value in shape_values(shape).items() if shape is not None else ():
        if (own := origin.shape.get(name)) != value:
            told = "other subblocks" if name == "blocks" else f"`{name}` {show(own)}, and this one has {show(value)}"
            raise _wrong(f"{path.name} was measured for a parent with {told}; take the table of this parent")
    for scenario in hardware.scenarios:
        held = origin.scenarios.get(scenario.name, {})
        for name, size in workload_values(scenario).items():
            if held.get(name) != size:
                raise _wrong(
                    f"{path.name} was measured with {name} {held.get(name)} in scenario {scenario.name}, and the job "
                    f"has {size} there; measure it again, or set the scenario as the table has it"
                )
    return True


def _checked(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with whole numbers; UserError for a value that is no cost."""
    own = {str(name).strip(): value for name, value in row.items()}
    where = f"{own['variant']} at layer {own['layer']} in scenario {own['scenario']}"
    for name in ("layer", *ADDED, *(name for name in OPTIONAL if own.get(name) is not None)):
        value = own[name]
        least = -1 if name == "layer" else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
            raise _wrong(
                f"{path.name} has {show(value)} as `{name}` of {where}; write a whole number of at least {least}"
            )
        if value != int(value):
            raise _wrong(f"{path.name} has {value:g} as `{name}` of {where}; write a whole number")
        own[name] = int(value)
    return own | {"scenario": str(own["scenario"]), "variant": str(own["variant"])}


def _check_rows(path: Path, rows: Iterable[Mapping[str, Any]], scenarios: Sequence[str]) -> None:
    """Each row once, and the ends of every scenario."""
    seen: set[tuple[str, int, str]] = set()
    for row in rows:
        key = (row["scenario"], row["layer"], row["variant"])
        if key in seen:
            raise _wrong(f"{path.name} has two rows for {key[2]} at layer {key[1]} in scenario {key[0]}; leave one out")
        seen.add(key)
    layer, slot, label = ENDS
    for scenario in scenarios:
        if (scenario, layer, label) not in seen:
            raise _wrong(
                f"{path.name} has no row for embedding and head (layer {layer}, slot {slot}, variant {label}) in "
                f"scenario {scenario}; {_WAY_OUT}"
            )


def _check_against(
    path: Path,
    rows: list[dict[str, Any]],
    scenarios: Sequence[str],
    space: SearchSpace,
    shape: Shape,
    storage: Storage | None,
    caches: Sequence[str],
) -> None:
    """A row for every variant of every layer, of the sizes that it has in this parent."""
    table = CostTable(rows)
    for scenario in scenarios:
        total = dict(table.ends(scenario))
        _check_size(path, total, ends_parameters(shape))
        for layer in range(shape.num_layers):
            for variant in variants_of(space, shape, layer):
                if variant.is_free:
                    continue
                if not table.has(scenario, layer, variant.label):
                    raise _wrong(
                        f"{path.name} has no row for {variant.label} at layer {layer} in scenario {scenario}; measure "
                        "it on the device, or take the variant out of the space"
                    )
                row = table.of(scenario, layer, variant.label)
                for label in (with_cache(variant.label, cache) for cache in (caches if row["kv_bytes"] else ())):
                    if not table.has(scenario, layer, label):
                        raise _wrong(
                            f"{path.name} has no row for {label} at layer {layer} in scenario {scenario}; measure it "
                            "on the device for both caches, or name one cache in hardware.kv_format"
                        )
                entry = variant.entry(shape, layer)
                _check_size(path, row, parameters(entry, variant.slot, shape))
                if storage is not None:
                    _check_bytes(path, row, storage.weights(entry, variant.slot, shape))
                if variant.is_parent:
                    total |= {name: total[name] + row[name] for name in TIMES}
        if empty := [name for name in TIMES if total[name] == 0]:
            raise _wrong(
                f"{path.name} gives the parent a total of 0 as `{empty[0]}` in scenario {scenario}; {_WAY_OUT}"
            )


def _check_size(path: Path, row: Mapping[str, Any], own: int) -> None:
    if row["parameters"] != own:
        raise _wrong(
            f"{path.name} gives {row['variant']} at layer {row['layer']} {row['parameters']:,} parameters, and in this "
            f"parent it has {own:,}; take the table of this parent"
        )


def _check_bytes(path: Path, row: Mapping[str, Any], own: int) -> None:
    """The type that a parent is stored in is no part of its shape, and decides the bytes of some engines."""
    if row["weights_bytes"] != own:
        raise _wrong(
            f"{path.name} gives {row['variant']} at layer {row['layer']} {row['weights_bytes']:,} bytes of weights, "
            f"and as this parent is stored it has {own:,}; measure it with this parent, whose config.json names its "
            "dtype"
        )


def _wrong(text: str) -> UserError:
    return UserError(f"{FIELD}: {text}")


_WAY_OUT = "give a table such as a workspace's tables/costs.parquet"
