"""`inlay measure`: a cost table from config.json alone, times that are kept, and tables that a job refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from inlay.nas.cli import main
from inlay.nas.stages.estimate import START_SECONDS
from inlay.nas.tables.reading import read_arrow

Answer = Callable[..., Any]
Refusal = Callable[..., str]
WriteJob = Callable[..., Path]
Rows = list[dict[str, Any]]

ENTRIES = 6
"""Distinct subblocks of the job's space: the parent's two, kv_heads=1, window=8, width=0.5 and linear."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the machine of this test keeps its times."""
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path / "kept"))
    return tmp_path / "kept"


def rows_of(path: Path) -> Rows:
    return [{n: v for n, v in row.items() if n != "origin"} for row in read_arrow(path).to_pylist()]


def test_neither_weights_nor_texts_are_needed_and_no_time_is_taken_twice(
    tmp_path: Path, kept: Path, answer: Answer, write_job: WriteJob, tiny_parent: Callable[..., Path]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(tiny_parent("llama") / "config.json", bare / "config.json")
    # A table that the job names already, as the search will, may be the one that is to be written.
    job = write_job({"hardware.costs": "costs.parquet"}, bare)
    for text in ("train.txt", "held_out.txt"):
        (tmp_path / text).unlink()
    first, second = tmp_path / "costs.parquet", tmp_path / "again.csv"
    told = answer("measure", job, "--output", first)
    assert (told["timed"], told["kept"]) == (ENTRIES + 1, 0)
    assert (told["engine"], told["format"]) == ("transformers", "parent")
    told = answer("measure", job, "-o", second)
    assert (told["timed"], told["kept"]) == (0, ENTRIES + 1)
    assert rows_of(first) == rows_of(second)
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "job.yaml", "kept", first.name, second.name}
    told = answer("measure", job, "-o", second, "--again")
    assert (told["timed"], told["kept"]) == (ENTRIES + 1, 0)
    assert rows_of(first) != rows_of(second)
    answer("measure", job, "-o", first)
    assert rows_of(first) == rows_of(second)


def test_what_is_new_joins_what_is_kept(tmp_path: Path, kept: Path, answer: Answer, write_job: WriteJob) -> None:
    answer("measure", write_job(), "-o", tmp_path / "one.csv")
    more = {"space.ffn": [{"width": 0.5}, {"width": 0.25}, "linear"]}
    told = answer("measure", write_job(more), "-o", tmp_path / "two.csv")
    assert (told["timed"], told["kept"]) == (1, ENTRIES + 1)
    (one, two) = (
        {(row["layer"], row["variant"]): row for row in rows_of(tmp_path / name)} for name in ("one.csv", "two.csv")
    )
    assert one.items() <= two.items()
    assert {variant for _, variant in two.keys() - one.keys()} == {"ffn:width=16"}
    told = answer(
        "measure", write_job({"hardware.scenarios": [{"prefill": 9, "generate": 4}]}), "-o", tmp_path / "x.csv"
    )
    assert told["kept"] == 0


def test_a_damaged_file_is_measured_again(tmp_path: Path, kept: Path, answer: Answer, write_job: WriteJob) -> None:
    job, table = write_job(), tmp_path / "costs.csv"
    answer("measure", job, "-o", table)
    held = next(path for path in kept.rglob("*.json") if path.name != "conditions.json")
    held.write_text(held.read_text()[:20])
    told = answer("measure", job, "-o", table)
    assert (told["timed"], told["kept"]) == (1, ENTRIES)


def test_a_folder_that_cannot_be_written_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, write_job: WriteJob
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INLAY_MEASURED", str(tmp_path / "file" / "kept"))
    assert answer("measure", write_job(), "-o", tmp_path / "costs.csv")["timed"] == ENTRIES + 1
    assert answer("measure", "--list")["kept"] == []


def test_kept_times_are_listed_and_dropped(
    tmp_path: Path, kept: Path, answer: Answer, write_job: WriteJob, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer("measure", "--list") == {"folder": str(kept), "kept": []}
    assert main(["measure", "--clear"]) == 0
    assert capsys.readouterr().out == f"no times are kept in {kept}\n"
    answer("measure", write_job(), "-o", tmp_path / "costs.csv")
    (found,) = answer("measure", "--list")["kept"]
    assert found["entries"] == ENTRIES + 1
    assert found["conditions"]["workload"] == {"batch_size": 1, "prefill": 8, "generate": 4, "threads": 1}
    assert found["conditions"]["shape"]["base"]["hidden_size"] == 32
    assert found["size_bytes"] == sum(path.stat().st_size for path in kept.rglob("*.json"))
    assert main(["measure", "--list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("transformers (parent, float32) on ")
    assert second.startswith(f"  llama, 32 wide, 4 heads; 1 x 8+4 tokens, threads 1: {ENTRIES + 1} times, ")
    other = kept / "notes.json"
    other.write_text("not ours")
    assert main(["measure", "--clear"]) == 0
    assert capsys.readouterr().out.startswith(f"dropped {ENTRIES + 1} times of 1 workload, ")
    assert [path for path in kept.rglob("*.json") if path.is_file()] == [other]
    assert answer("measure", "--list")["kept"] == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_of_something_else_is_refused(
    tmp_path: Path, kept: Path, answer: Answer, refusal: Refusal, write_job: WriteJob, suffix: str
) -> None:
    table = tmp_path / f"costs{suffix}"
    answer("measure", write_job(), "-o", table)
    job = write_job({"hardware.costs": table.name})
    assert answer("validate", job)["valid"]
    own = table.read_bytes()
    words = {
        "engine": ("llama.cpp", "was measured with the engine llama.cpp, and hardware.engine is transformers; measure"
                   " it with that engine, or take the table's"),
        "format": ("f16", "was measured in the format f16, and hardware.format is parent; measure it in that format"),
        "shape.hidden": (64, "was measured for a parent with `hidden` 64, and this one has 32; take the table of this"),
        "shape.blocks": ([], "was measured for a parent with other subblocks; take the table of this parent"),
        "scenarios.default.threads": (4, "was measured with threads 4 in scenario default, and the job has 1 there;"
                                      " measure it again, or set the scenario as the table has it"),
        "scenarios.default.prefill": (9, "was measured with prefill 9 in scenario default, and the job has 8 there;"),
        "engine.name": (1, "what it says of its own origin cannot be read (engine: "),
    }  # fmt: skip
    for field, (value, said) in words.items():
        table.write_bytes(own)
        change_origin(table, field, value)
        told = refusal("validate", job)
        assert f"hardware.costs: {table.name}" in told
        assert said in told
        assert told.count("\n") == 1
    table.write_bytes(own)
    change_origin(table, "", None)
    assert answer("validate", job)["valid"]


def test_a_plan_counts_what_is_kept(tmp_path: Path, kept: Path, answer: Answer, write_job: WriteJob) -> None:
    def planned(job: Path) -> Any:
        (stage,) = [stage for stage in answer("plan", job)["stages"] if stage["name"] == "measure"]
        return stage

    job = write_job({"space": {"ffn": [{"width": 32}]}})
    before = planned(job)
    assert before["what"] == "times of every distinct subblock"
    answer("measure", job, "-o", tmp_path / "costs.parquet")
    after = planned(job)
    assert after["what"] == "times of every distinct subblock; of 4 times this machine has 4"
    # Workers are started all the same.
    assert after["seconds"] == START_SECONDS < before["seconds"]
    wider = planned(write_job({"space": {"ffn": [{"width": 32}, {"width": 16}]}}))
    assert wider["what"].endswith("of 5 times this machine has 4")


def test_the_engine_that_ships_times_its_own_files(
    tmp_path: Path, kept: Path, answer: Answer, refusal: Refusal, write_job: WriteJob
) -> None:
    space = {"space": {"attention": [{"kv_heads": 1}], "ffn": ["linear"]}}
    job = write_job({**space, "hardware.engine": "llama.cpp"})
    told = answer("measure", job, "-o", tmp_path / "costs.parquet")
    assert (told["engine"], told["format"], told["timed"]) == ("llama.cpp", "f16", 7)
    assert "ggml" in told["environment"]["engine"]
    given = {**space, "hardware.costs": "costs.parquet"}
    assert answer("validate", write_job({**given, "hardware.engine": "llama.cpp"}))["valid"]
    assert "was measured with the engine llama.cpp, and" in refusal("validate", write_job(given))


def change_origin(path: Path, field: str, value: Any) -> None:
    """Writes a table again with another origin; with none for no field."""
    table = read_arrow(path)
    if not field:
        table = table.replace_schema_metadata(None)
        return write(table.drop_columns(["origin"]) if "origin" in table.column_names else table, path)
    csv = "origin" in table.column_names
    text = next(filter(None, table.column("origin").to_pylist())) if csv else table.schema.metadata[b"inlay"]
    origin = place = json.loads(text)
    *parents, last = field.split(".")
    for name in parents:
        place[name] = place[name] if isinstance(place[name], dict) else {}
        place = place[name]
    place[last] = value
    if csv:
        told = [json.dumps(origin) if own else "" for own in table.column("origin").to_pylist()]
        return write(table.set_column(table.column_names.index("origin"), "origin", [told]), path)
    return write(table.replace_schema_metadata({b"inlay": json.dumps(origin).encode()}), path)


def write(table: pyarrow.Table, path: Path) -> None:
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "measure takes a JOB with --output FILE, or --list, or --clear; see inlay measure --help"),
        (["--list", "--clear"], "measure takes a JOB with --output FILE, or --list, or --clear; see inlay"),
        (["--list", "--again"], "--again: goes with a JOB, which is missing; see inlay measure --help"),
        (["{job}"], "--output: is missing; name the table to write, such as costs.parquet"),
        (["{job}", "-o", "{folder}/costs.txt"], "costs.txt is neither .parquet nor .csv; give the file one of these"),
        (["{job}", "-o", "{folder}/no/costs.csv"], "/no; make it, or name another"),
        (["{job}", "-o", "{folder}/taken.csv"], "taken.csv is a folder; name a file in it, such as "),
        (["{job}", "-o", "/proc/costs.csv"], "--output: /proc/costs.csv cannot be written ("),
    ],
)  # fmt: skip
def test_wrong_words(tmp_path: Path, refusal: Refusal, write_job: WriteJob, words: list[str], said: str) -> None:
    job = write_job()
    (tmp_path / "taken.csv").mkdir()
    before = sorted(tmp_path.rglob("*"))
    told = refusal("measure", *(word.format(job=job, folder=tmp_path) for word in words))
    assert said in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hardware.engine": "llama.cpp", "hardware.python": "/no/python", "space": {"ffn": [{"width": 0.5}]}},
     "/no/python"),
    ({"hardware.engine": "vllm"}, "vLLM on a CPU has attention for heads of 32, 64, "),
    ({"hardware.engine": "vllm", "hardware.format": "q8_0"}, "q8_0 is not a format of vllm; write bf16, f16, f32 or"),
    ({"hardware.engine": "llama.cpp", "space": {"formats": ["int8"]}},
     "space.formats[0]: int8 is not a format of llama.cpp; search with `hardware.engine: vllm`, or leave it out"),
    ({"hardware.device": "cuda", "hardware.engine": "llama.cpp"}, "hardware.device: cuda is not where inlay runs"),
    ({"hardware.scenarios": [{"prefill": 64, "generate": 64}]}, "context is 64, so make one of them smaller"),
    ({"space": {"attention": [{"kv_heads": 3}]}}, "space.attention[0].kv_heads: "),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_job(
    tmp_path: Path, kept: Path, write_job: WriteJob, capsys: pytest.CaptureFixture[str], changes: Any, said: str
) -> None:
    job = write_job(changes)
    assert main(["measure", str(job), "-o", str(tmp_path / "costs.csv")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held_out.txt", "job.yaml", "train.txt"]


def test_a_config_that_names_no_number_type(
    tmp_path: Path, refusal: Refusal, write_job: WriteJob, tiny_parent: Callable[..., Path]
) -> None:
    config = json.loads((tiny_parent("llama") / "config.json").read_text())
    config = {name: value for name, value in config.items() if "dtype" not in name}
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(config))
    told = refusal("measure", write_job(None, bare), "-o", tmp_path / "costs.csv")
    assert "parent: there are no weights" in told


def test_the_table_is_one_that_can_be_solved(tmp_path: Path, answer: Answer, write_job: WriteJob) -> None:
    table = tmp_path / "costs.csv"
    answer("measure", write_job(), "-o", table)
    words = ("--minimize", "runtime_ns", "--limit", "parameters=1x")
    assert answer("solve", table, *words)["solutions"][0]["status"] == "optimal"
