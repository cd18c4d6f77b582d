"""What a cost table's times are of: searches and `inlay measure` write it into theirs, and a job is held to it.

In Parquet it is the key `inlay` of the file's metadata, in CSV the column `origin` of the rows of the ends, which every
table has: it stays with the file. No torch here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from inlay.nas.errors import UserError
from inlay.nas.families import Shape
from inlay.nas.job.sections import Scenario
from inlay.nas.tables.costs import ENDS

if TYPE_CHECKING:
    import pyarrow

KEY: Final = b"inlay"
COLUMN: Final = "origin"
SUFFIXES: Final = (".parquet", ".csv")


class Origin(BaseModel):
    """What the times of a cost table are of.

    Args:
        engine: as `hardware.engine` has it.
        format: what matrices were stored in; never `auto`.
        device: the processor's name.
        environment: the versions of what computed.
        shape: the parent's, as JSON values.
        scenarios: `batch_size, prefill, generate, threads` of each, by name.
    """

    model_config = ConfigDict(frozen=True)  # what a later inlay adds is not read

    engine: str
    format: str
    device: str
    environment: Mapping[str, str]
    shape: Mapping[str, Any]
    scenarios: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(
        cls, engine: str, form: str, environment: Mapping[str, str], shape: Shape, scenarios: Sequence[Scenario]
    ) -> Self:
        """The origin of what is measured for a job."""
        return cls(
            engine=engine,
            format=form,
            device=environment["device"],
            environment={name: value for name, value in environment.items() if name not in ("device", "format")},
            shape=shape_values(shape),
            scenarios={scenario.name: workload_values(scenario) for scenario in scenarios},
        )


def shape_values(shape: Shape) -> dict[str, Any]:
    """A parent's shape as JSON values; without its number type, which config.json alone need not tell."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(shape)))
    del values["dtype"]
    return values


def workload_values(scenario: Scenario) -> dict[str, int]:
    """What a scenario's times depend on."""
    return scenario.model_dump(exclude={"name"})


def check_place(path: Path) -> None:
    """Raises UserError, opened by `--output`, when no cost table can be written to `path`."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output: {path} is neither {' nor '.join(SUFFIXES)}; give the file one of these endings")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file in it, such as {path / 'costs.parquet'}")
    if not path.parent.is_dir():
        raise UserError(f"--output: there is no folder {path.parent}; make it, or name another")
    beside = _beside(path)
    try:
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_costs(path: Path, rows: Sequence[Mapping[str, Any]], origin: Origin) -> None:
    """Writes a cost table as CSV or Parquet, by its suffix, whole or not at all.

    Raises:
        UserError: opened by `--output`, when it cannot be written.
    """
    import pyarrow
    from pyarrow import csv, parquet

    beside = _beside(path)
    try:
        if path.suffix == ".csv":
            text = origin.model_dump_json()
            own = [{**row, COLUMN: text if _is_ends(row) else ""} for row in rows]
            csv.write_csv(pyarrow.Table.from_pylist(own), beside)
        else:
            table = pyarrow.Table.from_pylist([dict(row) for row in rows])
            parquet.write_table(table.replace_schema_metadata(metadata_of(origin)), beside)
        beside.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def metadata_of(origin: Origin) -> dict[bytes, bytes]:
    """As it stands in a Parquet file."""
    return {KEY: origin.model_dump_json().encode()}


def origin_of(table: pyarrow.Table) -> Origin | None:
    """What a table says of itself; None where it says nothing, as one that was written by hand.

    Raises:
        UserError: it says what this inlay cannot read.
    """
    text = (table.schema.metadata or {}).get(KEY)
    if text is None and COLUMN in table.column_names:
        told = (str(value) for value in table.column(COLUMN).to_pylist())
        text = next((value for value in told if value.startswith("{")), None)
    if text is None:
        return None
    try:
        return Origin.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise UserError(
            f"what it says of its own origin cannot be read ({where}: {first['msg']}); measure it again"
        ) from None


def _is_ends(row: Mapping[str, Any]) -> bool:
    return (row["layer"], row["variant"]) == (ENDS[0], ENDS[2])


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"--output: {path} cannot be written ({error.strerror or error}); name another file")
