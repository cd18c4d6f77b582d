"""Documents of Parquet and Arrow files, read batch by batch: where each is, and its text by its place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from inlay.distill.lines import Place
from inlay.distill.records import Records

_ROWS_A_BATCH = 1024


def table_documents(path: Path, records: Records) -> Iterator[list[Place]]:
    """The parts of the document of each row, none for an empty one.

    Raises:
        ValueError: the file is cut off or no such file, lacks the column, or has a row that is no document.
    """
    with _opened(path) as table:
        column = _column(path, table, records)
        row = 0
        for values in table.batches(column):
            for value in values:
                num_parts = records.num_parts(value, f"{path}, row {row}")
                size = len(value) if isinstance(value, str) else len(repr(value))
                yield [(row, size // num_parts, part) for part in range(num_parts)] if num_parts else []
                row += 1


def table_texts(path: Path, records: Records, places: Sequence[Place]) -> Iterator[str]:
    """The parts at these places, whose rows ascend."""
    with _opened(path) as table:
        column = _column(path, table, records)
        wanted = sorted({place[0] for place in places})
        values = table.rows(column, wanted)
        held, value = -1, None
        for row, _, part in places:
            if row != held:
                held, value = row, next(values)
            yield records.part(value, part, f"{path}, row {row}")


def _column(path: Path, table: _Parquet | _Arrow, records: Records) -> str:
    import pyarrow.types as kinds

    column = records.field_of(table.schema.names, str(path))
    kind = table.schema.field(column).type
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        return column
    if (kinds.is_list(kind) or kinds.is_large_list(kind)) and kinds.is_struct(kind.value_type):
        return column
    raise ValueError(f"{path}: the column `{column}` holds {kind}, neither texts nor conversations; name another")


@contextmanager
def _opened(path: Path) -> Iterator[_Parquet | _Arrow]:
    import pyarrow

    try:
        yield _Parquet(path) if path.suffix == ".parquet" else _Arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: ends early or is no {kind} file ({reason}); copy it again") from None


class _Parquet:
    """Row groups are read in pieces, and of a column alone."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        self.schema = self._file.schema_arrow
        meta = self._file.metadata
        self._starts = [0, *accumulate(meta.row_group(group).num_rows for group in range(meta.num_row_groups))]

    def batches(self, column: str) -> Iterator[list[Any]]:
        for group in range(self._file.metadata.num_row_groups):
            for batch in self._file.iter_batches(_ROWS_A_BATCH, columns=[column], row_groups=[group]):
                yield batch.column(0).to_pylist()

    def rows(self, column: str, wanted: Sequence[int]) -> Iterator[Any]:
        """The values of ascending rows; a row group is decoded once."""
        place = 0
        while place < len(wanted):
            group = bisect_right(self._starts, wanted[place]) - 1
            row = self._starts[group]
            for batch in self._file.iter_batches(_ROWS_A_BATCH, columns=[column], row_groups=[group]):
                while place < len(wanted) and wanted[place] < row + len(batch):
                    yield batch.column(0)[wanted[place] - row].as_py()
                    place += 1
                row += len(batch)
                if place == len(wanted) or wanted[place] >= self._starts[group + 1]:
                    break


class _Arrow:
    """An Arrow stream, as `datasets` saves it, or an Arrow file; mapped, not read."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        source = pyarrow.memory_map(str(path))
        stream = source.read(6) != b"ARROW1"
        source.seek(0)
        opened = pyarrow.ipc.open_stream(source) if stream else pyarrow.ipc.open_file(source)
        self._table = opened.read_all()
        self.schema = self._table.schema

    def batches(self, column: str) -> Iterator[list[Any]]:
        for batch in self._table.select([column]).to_batches(max_chunksize=_ROWS_A_BATCH):
            yield batch.column(0).to_pylist()

    def rows(self, column: str, wanted: Sequence[int]) -> Iterator[Any]:
        values = self._table.column(column)
        for row in wanted:
            yield values[row].as_py()
