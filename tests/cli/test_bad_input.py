"""Bad input, as a process: exit 2, one line on stderr with field, value and way out, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from inlay.cluster.lock import locked
from inlay.nas.check import check_file
from inlay.nas.workspace import Workspace

Inlay = Callable[..., Any]
WriteJob = Callable[..., Path]
TinyParent = Callable[..., Path]

FIELDS = [
    ({"distil": {}}, "distil: unknown key; did you mean `distill`?"),
    ({"budget.runtime": "20msec"}, "budget.runtime: '20msec' has the unit `msec`"),
    ({"budget.memory": "24G"}, "budget.memory: '24G' has the unit `G`, which is not known here; did you mean `GB`?"),
    ({"distill.tokens": -5}, "distill.tokens: -5 is out of range; it must be at least 0"),
    ({"distill.batch_size": 0}, "distill.batch_size: 0 is out of range; it must be at least 1"),
    ({"hardware.scenarios": [{"prefill": 0}]}, "hardware.scenarios[0].prefill: 0 is out of range"),
    ({"space.ffn": [{"width": 0}]}, "space.ffn[0].width: 0 is not a width"),
    ({"space.layers": [{"merge": 1}]}, "space.layers[0].merge: 1 is no run of layers; write 2 or more"),
]
AGAINST_PARENT = [
    ({"space.attention": ["no_op", {"kv_heads": 3}]}, "space.attention[1].kv_heads: "),
    ({"space.ffn": [{"width": 480}]}, "space.ffn[0].width: "),
    ({"space.attention": [{"window": 65}]}, "space.attention[0].window: "),
    ({"space.layers": [{"merge": 9}]}, "space.layers[0].merge: 9 is not possible at layer 0: the parent has "),
    ({"space.attention": ["no_op", {"window": 12}]},
     "space.attention[1].window: 12 and 4 sinks hide nothing of the sequences of 16 tokens that quality is judged on, "
     "so that what it loses would not be seen; give less than 12, or raise data.validate.sequence_length"),
    ({"data.distill.sequence_length": 65, "distill.tokens": 65, "recover.tokens": 65},
     "data.distill.sequence_length: 65 is longer than the parent's context; it must be at most 64"),
    ({"data.validate.sequence_length": 65}, "data.validate.sequence_length: 65 is longer than the parent's context"),
    ({"hardware.scenarios": [{"prefill": 60, "generate": 8}]},
     "hardware.scenarios[0]: prefill 60 and generate 8 make 68 tokens; the parent's context is 64"),
    ({"hardware.costs": "costs.csv"}, "hardware.costs: there is no file "),
    ({"parent": "./nowhere"}, "parent: there is no folder "),
]  # fmt: skip


def refused(done: Any, start: str) -> None:
    """One line, exit 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("inlay: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert start in done.stderr, done.stderr
    assert done.stdout == ""


def names(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("changes", "start"), FIELDS + AGAINST_PARENT, ids=[start[:50] for _, start in FIELDS + AGAINST_PARENT]
)
def test_validate(inlay: Inlay, write_job: WriteJob, changes: dict[str, Any], start: str) -> None:
    job = write_job(changes)
    before = names(job.parent)
    refused(inlay("validate", job), f"{job}: {start}")
    assert names(job.parent) == before


def test_adapters_without_peft(write_job: WriteJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert list(map(str, check_file(write_job({"recover.train": "adapters"})).problems)) == [
        "recover.train: 'adapters' needs PEFT, which is not installed here; install inlay with its extra: "
        "pip install 'inlay[adapters]'"
    ]


@pytest.mark.parametrize(("changes", "start"), [FIELDS[0], AGAINST_PARENT[0]])
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_run_and_plan(inlay: Inlay, write_job: WriteJob, verb: str, changes: dict[str, Any], start: str) -> None:
    job = write_job(changes)
    before = names(job.parent)
    refused(inlay(verb, job), start)
    assert names(job.parent) == before


def test_everything_in_one_list(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job({
        "distil": {},
        "space.attention": [{"kv_heads": 3}],
        "data.distill.path": "nowhere.txt",
        "hardware.scenarios": [{"prefill": 60, "generate": 8}],
    })  # fmt: skip
    done = inlay("validate", job)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == f"inlay: {job} has 4 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "distil",
        "space.attention[0].kv_heads",
        "hardware.scenarios[0]",
        "data.distill.path",
    ]
    told = json.loads(inlay("validate", job, "--json").stdout)
    assert told["valid"] is False
    assert [problem["field"] for problem in told["problems"]] == [line.split(":")[0].strip() for line in lines[1:]]


def test_a_right_job(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job()
    before = names(job.parent)
    done = inlay("validate", job)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{job} is right\n")
    assert json.loads(inlay("validate", job, "--json").stdout) == {"valid": True, "problems": [], "warnings": []}
    assert names(job.parent) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"too short", "has"),
        (b"", "no text in it"),
        (b"good\n<|endoftext|>\nbad \xff\xfe", "not UTF-8 at byte offset 23"),
    ],
)
def test_text(inlay: Inlay, write_job: WriteJob, content: bytes, words: str) -> None:
    job = write_job()
    (job.parent / "train.txt").write_bytes(content)
    done = inlay("validate", job)
    refused(done, "data.distill.path: ")
    assert words in done.stderr


SOURCES = [
    ([{"path": "train.txt", "weight": -1}], "data.distill.path[0].weight: -1 is out of range; it must be at least 0"),
    ([{"path": "train.txt", "weight": 0}],
     "data.distill.path: [{'path': 'train.txt', 'weight': 0}] has weights that sum to nothing; give at least one "
     "source a weight above 0"),
    ([], "data.distill.path: is missing; name a text, or give `sample` for one that the parent writes"),
    (3, "data.distill.path: 3 is neither a path nor a list of {path, weight}"),
    ([{"path": "train.txt", "digest": "abc"}],
     "data.distill.path[0].digest: 'abc' does not have the right form; write the 64 digits of a sha256, 0-9 and a-f"),
    (["train.txt", "held_out.txt"], "data.validate.path: 'held_out.txt' is the text that is trained on; name another"),
    (["train.txt", "nowhere.jsonl"], "data.distill.path[1].path: there is no file "),
    ("bad.jsonl", "bad.jsonl, line 2: not JSON (Expecting value); one object a line is wanted"),
    ([{"path": "bad.jsonl", "field": "body"}],
     "bad.jsonl, line 1: no field `body`; there are `text`; name one in `field`"),
    ("numbers.parquet", "numbers.parquet: no field `text` or `messages`; there are `number`; name one in `field`"),
    ("cut.parquet", "cut.parquet: ends early or is no Parquet file ("),
    ("blank.jsonl", "blank.jsonl: no text in it"),
    ("chats.jsonl", "chats.jsonl, the line at byte 0: a conversation, and the parent's tokenizer has no chat template"),
]  # fmt: skip


def test_a_text_is_read_or_written(refusal: Callable[..., str], write_job: WriteJob) -> None:
    said = refusal("validate", write_job({"data.distill.sample": "2M"}))
    assert "data.distill.sample: there is a path too; leave out one of them" in said
    said = refusal("validate", write_job({"data.distill": {"sample": 0, "sequence_length": 16}}))
    assert "data.distill.sample: 0 is out of range; it must be at least 8" in said


@pytest.mark.parametrize(("path", "words"), SOURCES, ids=[words[:50] for _, words in SOURCES])
def test_sources_of_a_text(refusal: Callable[..., str], write_job: WriteJob, path: Any, words: str) -> None:
    job = write_job({"data.distill.path": path})
    (job.parent / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    (job.parent / "blank.jsonl").write_text('{"text": " "}\n')
    (job.parent / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "' + "hello " * 30 + '"}]}\n')
    parquet.write_table(pyarrow.table({"number": list(range(50))}), job.parent / "numbers.parquet")
    (job.parent / "cut.parquet").write_bytes((job.parent / "numbers.parquet").read_bytes()[:-40])
    said = refusal("validate", job)
    assert words in said
    assert said.count("\n") == 1


def test_text_shorter_than_a_sequence(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job()
    (job.parent / "train.txt").write_text("one two")
    done = inlay("validate", job)
    refused(done, "data.distill.path: 'train.txt': the text has ")
    assert "less than one sequence of 16; give more text, or lower data.distill.sequence_length" in done.stderr


def test_validation_text_shorter_than_what_is_served(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job({"hardware.scenarios": [{"prefill": 40, "generate": 20}]})
    (job.parent / "held_out.txt").write_text("one two three\n<|endoftext|>\n" * 4)
    done = inlay("validate", job)
    refused(done, "data.validate.path: 'held_out.txt': a part of the validation text ")
    assert "less than one sequence of 60; give more text, or lower data.validate.sequence_length" in done.stderr


def test_validation_text_of_one_document(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job()
    (job.parent / "held_out.txt").write_text("a long single document " * 100)
    refused(inlay("validate", job), "data.validate.path: ")


@pytest.fixture
def parent_copy(tmp_path_factory: pytest.TempPathFactory, tiny_parent: TinyParent) -> Path:
    """A parent of one's own, to break."""
    folder = tmp_path_factory.mktemp("parent") / "model"
    shutil.copytree(tiny_parent("llama"), folder)
    return folder


def test_parent_without_weights(inlay: Inlay, write_job: WriteJob, parent_copy: Path) -> None:
    (parent_copy / "model.safetensors").unlink()
    refused(inlay("validate", write_job(parent=parent_copy)), "parent: the folder ")


def test_parent_with_a_truncated_file(inlay: Inlay, write_job: WriteJob, parent_copy: Path) -> None:
    weights = parent_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = inlay("validate", write_job(parent=parent_copy))
    refused(done, "parent: the file ")
    assert "it is truncated" in done.stderr


def test_another_models_tokenizer(inlay: Inlay, write_job: WriteJob, parent_copy: Path) -> None:
    tokenizer = json.loads((parent_copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<<<stranger>>>"] = 999_999
    (parent_copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = inlay("validate", write_job(parent=parent_copy))
    refused(done, "parent: the tokenizer in ")
    assert "does not match the model" in done.stderr


def test_a_nan_weight_stops_a_run(inlay: Inlay, write_job: WriteJob, parent_copy: Path) -> None:
    weights = load_file(parent_copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(weights, parent_copy / "model.safetensors", metadata={"format": "pt"})
    job = write_job(parent=parent_copy)
    before = names(job.parent)
    done = inlay("run", job)
    refused(done, "parent")
    assert "layer 1" in done.stderr
    assert names(job.parent) == before


def test_the_workspace_of_another_parent(inlay: Inlay, write_job: WriteJob, tmp_path_factory: Any) -> None:
    place = Workspace(tmp_path_factory.mktemp("other") / "w.search")
    place.write_json("workspace.json", {"schema": 1, "parent_digest": "0" * 64, "parent": "./other"})
    before = names(Path(place.url))
    done = inlay("run", write_job(), "--workspace", place.url)
    refused(done, "workspace: ")
    assert "belongs to the parent ./other" in done.stderr
    assert names(Path(place.url)) == before


def test_a_locked_workspace(inlay: Inlay, write_job: WriteJob) -> None:
    job = write_job()
    place = Workspace(job.with_suffix(".search"))
    with locked(place.store, "another run"):
        done = inlay("run", job)
    refused(done, "another run (process ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"parent: [", "is not valid YAML"),
        (b"a: &a [*a]", "an alias that contains itself"),
        (b"x: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        (b"#" * 500_001, "is larger than 500000 bytes"),
        (b"\xff", "is not UTF-8"),
        (b"- a", "not a mapping"),
    ],
)
def test_job_files_that_are_none(inlay: Inlay, tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    refused(inlay("validate", file), words)
    assert names(tmp_path) == {"job.yaml"}


def test_no_job_file(inlay: Inlay, tmp_path: Path) -> None:
    refused(inlay("run", tmp_path / "job.yaml"), "there is no job file")
    refused(inlay("validate", tmp_path), "is a folder")


def test_a_password_in_a_url_is_refused_where_it_would_be_kept_or_seen(inlay: Inlay, write_job: WriteJob) -> None:
    refused(inlay("run", write_job({}), "-w", "s3://key:word@bucket/x"), "workspace: the URL has a password in it")
    refused(inlay("up", "--mlflow-store", "postgresql://ada:word@db/x"), "set INLAY_MLFLOW_STORE instead")
