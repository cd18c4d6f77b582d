"""What `inlay solve` says to bad input, as a process: one sentence, the exit code, nothing on stdout, no traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

Inlay = Callable[..., Any]

HEAD = "layer,variant,score,time_ms\n"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (HEAD + "0,a,nan,1\n", [], "t.csv: layer 0, variant `a`: `score` is nan; write a finite number or leave"),
        (HEAD + "0,a,1,1\n1,b,2,inf\n", [], "t.csv: layer 1, variant `b`: `time_ms` is inf; write a finite number"),
        (HEAD + "0,a,1,1\n2,a,1,1\n", [], "t.csv: layer 1 has no choices; layers are numbered from 0 without gaps"),
        (HEAD + "0,a,1,1\n0,a,2,2\n", [], "t.csv: layer 0 has the variant `a` twice; give each its own name"),
        (HEAD + "0,a,1,-1\n", [], "t.csv: layer 0, variant `a`: `time_ms` is -1; costs are at least 0, only the"),
        (HEAD, [], "t.csv has no rows; give each layer at least one"),
        ("", [], "t.csv is empty; give a table with columns `layer`, `variant` and numbers"),
        (HEAD + "0,a,1,1\n", ["--limit", "time_sm=1"], "--limit: t.csv has no column `time_sm`; did you mean"),
        (HEAD + "0,a,1,1\n", ["--minimize", "scoer"], "--minimize: t.csv has no column `scoer`; did you mean `score`?"),
        (HEAD + "0,a,1,1\n", ["--limit", "time_ms>=3", "--limit", "time_ms=2"],
         "--limit: the limits on `time_ms` contradict each other, at least 3 and at most 2; drop or move one"),
    ],
)  # fmt: skip
def test_one_sentence_and_exit_2(text: str, words: list[str], said: str, tmp_path: Path, inlay: Inlay) -> None:
    (tmp_path / "t.csv").write_text(text)
    done = inlay("solve", tmp_path / "t.csv", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"inlay: {said}")
    assert done.stderr.count("\n") == 1


def test_more_than_a_million_choices(tmp_path: Path, inlay: Inlay) -> None:
    count = 1_000_001
    columns = {"layer": [0] * count, "variant": [f"v{k}" for k in range(count)], "score": [1] * count}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    done = inlay("solve", tmp_path / "t.parquet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("inlay: t.parquet has 1,000,001 rows; at most 1,000,000 can be solved: leave some out\n")


def test_infeasible_is_exit_3_with_the_explanation(tmp_path: Path, inlay: Inlay) -> None:
    (tmp_path / "t.csv").write_text(HEAD + "0,a,1,5\n0,b,2,3\n1,a,1,5\n1,b,2,4\n")
    done = inlay("solve", tmp_path / "t.csv", "--limit", "time_ms=6")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        "inlay: no architecture meets the limits",
        "  time_ms <= 6: reaches 7 alone",
        "  out of reach by itself: time_ms <= 6",
        "  nearest: with every limit 14.3 % looser, score 4 at time_ms 7",
        "  least of each that any architecture has: time_ms 7",
    ]


def test_no_answer_in_time_is_exit_1_with_the_bound(tmp_path: Path, inlay: Inlay) -> None:
    """Even times that have to add up to an odd number: nobody finds such an architecture, or that there is none."""
    draw = random.Random(1)
    rows = [f"{layer},v{k},{k},{2 * draw.randrange(10**9)}\n" for layer in range(60) for k in range(3)]
    (tmp_path / "t.csv").write_text("layer,variant,score,time_ns\n" + "".join(rows))
    total = 60 * 10**9 + 1
    limits = ["--limit", f"time_ns={total}", "--limit", f"time_ns>={total}"]
    done = inlay("solve", tmp_path / "t.csv", *limits, "--time-limit", "0.5s")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "inlay: no architecture was found in the time limit of 0.5 s; none is better than score "
    )
    assert done.stderr.endswith("; raise --time-limit or loosen a limit\n")
