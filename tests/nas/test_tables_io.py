"""Bare tables: what is read, how numbers become integers and come back, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from inlay.nas.errors import UserError
from inlay.nas.tables.files import Column, is_parent
from inlay.nas.tables.reading import read_bare_table
from inlay.solver import Limit, ProblemError, solve

Write = Callable[[str], Path]

GOOD = "layer,variant,score,runtime_ms,memory_bytes,note\n-1,ends,0,0.5,100,x\n"
GOOD += "".join(f"{n},parent,0,2.25,4000,x\n{n},half,0.0{n + 1},1.1,2000,x\n" for n in range(3))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `t.csv`."""

    def to_file(text: str) -> Path:
        (tmp_path / "t.csv").write_text(text)
        return tmp_path / "t.csv"

    return to_file


def test_a_table_becomes_a_problem(write: Write) -> None:
    table = read_bare_table(write(GOOD))
    problem, score, columns = table.problem()
    assert table.texts == ("note",)
    assert (score.name, score.scale) == ("score", 10**9)
    assert problem.cost_names == ("score", "runtime_ms", "memory_bytes")
    assert [columns[name].scale for name in problem.cost_names] == [10**9, 100, 1]
    assert problem.base_costs == (0, 50, 100)
    assert problem.layers[1][1].label == "half"
    assert problem.layers[1][1].score == 20_000_000
    assert problem.layers[1][1].costs == (20_000_000, 110, 2000)
    assert columns["runtime_ms"].value(110) == 1.1
    assert table.parent("runtime_ms") == Fraction("7.25")


def test_parquet_and_csv_give_the_same_problem(write: Write, tmp_path: Path) -> None:
    path = write(GOOD)
    from pyarrow import csv

    parquet.write_table(csv.read_csv(path), tmp_path / "t.parquet")
    assert read_bare_table(path).problem()[0] == read_bare_table(tmp_path / "t.parquet").problem()[0]


def test_rows_in_any_order_give_the_same_answer(write: Write) -> None:
    head, *rows = GOOD.splitlines()
    answers = []
    for order in (rows, rows[::-1]):
        problem, _, columns = read_bare_table(write("\n".join([head, *order]))).problem()
        answers.append(solve(problem.with_limits(*_most(columns["runtime_ms"], "6")))[0])
    assert answers[0].labels == answers[1].labels
    assert answers[0].totals == answers[1].totals


def test_choices_of_several_layers(write: Write) -> None:
    text = "layer,variant,layers,kl_nats,bytes\n0,a,,0.1,5\n0,both,2,0.15,1\n1,a,1,0.1,5\n"
    problem, _, _ = read_bare_table(write(text)).problem()
    assert solve(problem)[0].labels == ("both", "both")


@given(st.lists(st.decimals(0, 10**6, places=4), min_size=1, max_size=6))
def test_decimals_stay_exact(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text("layer,variant,score,cost\n" + "".join(f"0,v{n},1,{value}\n" for n, value in enumerate(values)))
    problem, _, columns = read_bare_table(path).problem()
    column = columns["cost"]
    for choice, value in zip(problem.layers[0], values, strict=True):
        assert Fraction(choice.costs[-1], column.scale) == Fraction(str(value))
        assert column.value(choice.costs[-1]) == float(str(value))


def test_small_and_large_numbers_keep_twelve_digits(write: Write) -> None:
    text = "layer,variant,score,seconds\n0,a,1.5e-7,1.234567890123e-5\n0,b,2.5e-7,3e-6\n"
    problem, score, columns = read_bare_table(write(text)).problem()
    assert score.value(problem.layers[0][0].score) == pytest.approx(1.5e-7, rel=1e-9)
    assert columns["seconds"].value(problem.layers[0][0].costs[-1]) == pytest.approx(1.234567890123e-5, rel=1e-11)


@pytest.mark.parametrize(
    ("name", "text", "amount"),
    [
        ("runtime_ms", "20ms", Fraction(20)),
        ("runtime_ms", "20", Fraction(20)),
        ("runtime_ns", "20ms", Fraction(20_000_000)),
        ("runtime", "1.5us", Fraction(1500)),
        ("memory_gib", "512MiB", Fraction(1, 2)),
        ("memory", "24GiB", Fraction(24 * 2**30)),
        ("parameters", "7B", Fraction(7 * 10**9)),
        ("weights_bytes", "7B", Fraction(7)),
        ("tokens_per_s", "1.5k", Fraction(1500)),
    ],
)
def test_units_of_limits(name: str, text: str, amount: Fraction) -> None:
    assert Column(name).parse(text) == amount


@pytest.mark.parametrize("text", ["", "fast", "20parsec", "nan", "1/2"])
def test_limits_that_are_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        Column("cost").parse(text)


def test_parents() -> None:
    assert is_parent("parent")
    assert is_parent("attention:parent + ffn:parent")
    assert not is_parent("attention:parent + ffn:linear")
    assert not is_parent("grandparent")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv is empty; give a table with columns `layer`, `variant` and numbers"),
        ("layer,variant,score\n", "t.csv has no rows; give each layer at least one"),
        ("layer,variant,score\n-1,ends,3\n", "t.csv has only base rows"),
        ("layer;variant\n1;2\n", "t.csv has no column `layer`; a table has `layer`, `variant` and columns of numbers"),
        ("layer,variant,score\n0,a\n", "t.csv is neither a CSV table nor a Parquet file"),
        ("layer,variant,score,score\n0,a,1,1\n", "t.csv has the column `score` twice"),
        ("layer,variant,score\n0,a,nan\n", "t.csv: layer 0, variant `a`: `score` is nan; write a finite number"),
        ("layer,variant,score\n0,a,-inf\n", "t.csv: layer 0, variant `a`: `score` is -inf; write a finite number"),
        ("layer,variant,score\n0,a,1\n0,b,\n", "t.csv: layer 0, variant `b`: `score` is empty; write a finite number"),
        ("layer,variant,score\n0,a,1\n2,a,1\n", "t.csv: layer 1 has no choices; layers are numbered from 0"),
        ("layer,variant,score\n1,a,1\n", "t.csv: layer 0 has no choices; layers are numbered from 0"),
        ("layer,variant,score\n0,a,1\n0,a,2\n", "t.csv: layer 0 has the variant `a` twice; give each its own name"),
        ("layer,variant,score\n0,,1\n", "t.csv: layer 0 has a row without a `variant`"),
        ("layer,variant,score\n0.5,a,1\n", "t.csv: row 1: `layer` is 0.5; write a whole number"),
        ("layer,variant,score\nx,a,1\n", "t.csv: row 1: `layer` is 'x'; write a whole number"),
        ("layer,variant,score,cost\n0,a,1,-2\n", "t.csv: layer 0, variant `a`: `cost` is -2; costs are at least 0"),
        ("layer,variant,score,cost\n0,a,1,1e300\n", "t.csv: column `cost` has 1e+300, too large to add up"),
        ("layer,variant,cost\n0,a,1\n", "--minimize: t.csv has neither `score` nor `kl_nats`; name the column"),
        ("layer,variant,score\n0,a,many\n", "--minimize: t.csv has neither `score` nor `kl_nats`"),
    ],
)
def test_what_is_refused(text: str, said: str, write: Write) -> None:
    with pytest.raises(UserError) as caught:
        read_bare_table(write(text)).problem()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there(write: Write) -> None:
    table = read_bare_table(write(GOOD))
    with pytest.raises(UserError, match=r"no column `runtme_ms`; did you mean `runtime_ms`\?"):
        table.problem("runtme_ms")
    with pytest.raises(UserError, match=r"column `note` of t\.csv holds something other than numbers"):
        table.problem("note")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read_bare_table(tmp_path / "nowhere.csv")
    (tmp_path / "t.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(UserError, match="is neither a CSV table nor a Parquet file"):
        read_bare_table(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="is neither a CSV table nor a Parquet file"):
        read_bare_table(tmp_path / "t.parquet")


def test_more_than_a_million_choices(tmp_path: Path) -> None:
    count = 1_000_001
    columns = {"layer": [0] * count, "variant": ["v"] * count, "score": [1] * count}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has 1,000,001 rows; at most 1,000,000 can be solved"):
        read_bare_table(tmp_path / "t.parquet")


def test_a_choice_that_ends_outside_the_model_is_refused(write: Write) -> None:
    text = "layer,variant,layers,score\n0,a,2,1\n2,b,1,1\n0,c,0,1\n"
    with pytest.raises(ProblemError, match="it covers 0 layers"):
        read_bare_table(write(text)).problem()


def _most(column: Column, value: str) -> list[Limit]:
    return [Limit(column.name, upper=column.upper(column.parse(value)))]
