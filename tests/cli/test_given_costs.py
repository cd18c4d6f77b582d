"""A given cost table that is wrong: exit 2 with one sentence, nothing written, in `validate` as in `run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from inlay.nas.families import Shape, open_parent
from inlay.nas.job import Job
from inlay.nas.variants import ends_parameters, parameters, variants_of

Inlay = Callable[..., Any]
WriteJob = Callable[..., Path]
Rows = list[dict[str, Any]]

TIMES = {"prefill_ns": 3000, "decode_ns": 200, "runtime_ns": 3800}


@pytest.fixture
def job(write_job: WriteJob) -> Path:
    return write_job({"hardware.costs": "costs.parquet"})


@pytest.fixture
def rows(job: Path) -> Rows:
    """A right table of the job: every variant of every layer in its one scenario, and the ends."""
    loaded = Job.load(job)
    shape = open_parent(loaded.parent).shape
    layers = range(shape.num_layers)
    found = [row_of(shape, layer, variant) for layer in layers for variant in variants_of(loaded.space, shape, layer)]
    ends = {"layer": -1, "variant": "ends", "parameters": ends_parameters(shape)}
    return [{"scenario": "default", **TIMES, "weights_bytes": 64, "kv_bytes": 0, **row} for row in [*found, ends]]


def row_of(shape: Shape, layer: int, variant: Any) -> dict[str, Any]:
    size = parameters(variant.entry(shape, layer), variant.slot, shape)
    return {"layer": layer, "variant": variant.label, "parameters": size}


def without(rows: Rows, **values: Any) -> Rows:
    kept = [row for row in rows if any(row[name] != value for name, value in values.items())]
    assert len(kept) < len(rows)
    return kept


def changed(rows: Rows, value: dict[str, Any], **where: Any) -> Rows:
    found = [row | value if all(row[n] == v for n, v in where.items()) else row for row in rows]
    assert found != rows
    return found


WRONG: list[tuple[Callable[[Rows], Rows], str]] = [
    (lambda rows: without(rows, variant="ends"),
     "costs.parquet has no row for embedding and head (layer -1, slot ends, variant ends) in scenario default; give a"),
    (lambda rows: [row | {"scenario": "chat"} for row in rows],
     "costs.parquet has no rows of the scenario default, only of chat; measure it with that scenario, or name the job's"
     " scenarios as the table does"),
    (lambda rows: [{n: v for n, v in row.items() if n != "kv_bytes"} for row in rows],
     "costs.parquet has no column `kv_bytes` (its columns are scenario, "),
    (lambda rows: without(rows, layer=2, variant="ffn:linear"),
     "costs.parquet has no row for ffn:linear at layer 2 in scenario default; measure it on the device, or take"),
    (lambda rows: without(rows, layer=1, variant="attention:parent"),
     "costs.parquet has no row for attention:parent at layer 1 in scenario default"),
    (lambda rows: [*rows, rows[0]],
     "costs.parquet has two rows for attention:parent at layer 0 in scenario default; leave one out"),
    (lambda rows: changed(rows, {"runtime_ns": -5}, layer=1, variant="ffn:linear"),
     "costs.parquet has -5 as `runtime_ns` of ffn:linear at layer 1 in scenario default; write a whole number of at"),
    (lambda rows: changed(rows, {"kv_bytes": None}, layer=1, variant="ffn:linear"),
     "costs.parquet has None as `kv_bytes` of ffn:linear at layer 1 in scenario default; write a whole number of at"),
    (lambda rows: [row | {"decode_ns": 0} for row in rows],
     "costs.parquet gives the parent a total of 0 as `decode_ns` in scenario default; give a table such as"),
    (lambda rows: changed(rows, {"parameters": 7}, variant="ends"),
     "costs.parquet gives ends at layer -1 7 parameters, and in this parent it has 9,248; take the table of this"),
]  # fmt: skip


@pytest.mark.parametrize(("bend", "words"), WRONG, ids=[words[14:60] for _, words in WRONG])
def test_a_wrong_table(inlay: Inlay, job: Path, rows: Rows, bend: Callable[[Rows], Rows], words: str) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(bend(rows)), job.parent / "costs.parquet")
    before = sorted(job.parent.rglob("*"))
    for verb in ("validate", "run"):
        done = inlay(verb, job)
        assert done.returncode == 2, done.stderr
        assert f"hardware.costs: {words}" in done.stderr
        assert done.stderr.count("\n") == 1
        assert sorted(job.parent.rglob("*")) == before


def test_a_right_table_in_either_form_may_have_more_than_the_job(inlay: Inlay, job: Path, rows: Rows) -> None:
    more = [*rows, *(row | {"scenario": "long"} for row in rows), rows[0] | {"variant": "attention:window=2"}]
    table = pyarrow.Table.from_pylist([row | {"note": "x"} for row in more])
    pyarrow.parquet.write_table(table, job.parent / "costs.parquet")
    assert inlay("validate", job).returncode == 0
    pyarrow.csv.write_csv(table, job.parent / "costs.csv")
    job.write_text(job.read_text().replace("costs.parquet", "costs.csv"))
    done = inlay("validate", job)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "costs.csv is empty"), (b"PAR1 no more", "costs.csv is neither a CSV table nor a Parquet file")],
)
def test_a_file_that_is_no_table(inlay: Inlay, write_job: WriteJob, content: bytes, words: str) -> None:
    job = write_job({"hardware.costs": "costs.csv"})
    (job.parent / "costs.csv").write_bytes(content)
    done = inlay("validate", job)
    assert done.returncode == 2
    assert f"hardware.costs: {words}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_table_by_its_url(inlay: Inlay, write_job: WriteJob) -> None:
    done = inlay("validate", write_job({"hardware.costs": "s3://bucket/costs.parquet"}))
    assert done.returncode == 2
    assert "hardware.costs: there is no file s3://bucket/costs.parquet; name a cost table (.csv or .par" in done.stderr
