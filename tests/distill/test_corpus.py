"""Sources of text: documents found once in files of every kind, and read by their places in any order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet

from inlay.distill import corpus as corpus_module
from inlay.distill.corpus import Corpus
from inlay.distill.records import Records, contents

TEXTS = ["one\n<|endoftext|>\n", "zwei ü\n", "\u2028 three", "x" * 70_000 + "\n" + "y\n" * 20_000]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def corpus(path: Path, field: str | None = None, separator: str = "<|endoftext|>") -> Corpus:
    return Corpus(path, separator, Records(field, contents))


def read(path: Path, field: str | None = None, separator: str = "<|endoftext|>") -> list[str]:
    """All documents in their order, parts of long ones joined."""
    source = corpus(path, field, separator)
    index = source.index()
    documents = [""] * index.num_documents
    for place, part in zip(index.documents_N, source.texts(index, np.arange(len(index.places_N4))), strict=True):
        documents[place] += part
    return documents


def write_jsonl(file: Path, records: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def write_parquet(file: Path, records: Sequence[Any]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), file, row_group_size=3)
    return file


def write_saved(folder: Path, records: Sequence[Any]) -> Path:
    """A folder as `Dataset.save_to_disk` of Hugging Face's datasets library lays it out, in two shards."""
    folder.mkdir()
    table = pyarrow.Table.from_pylist(list(records))
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    half = len(table) // 2
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


WRITERS: dict[str, Callable[[Path, Sequence[Any]], Path]] = {
    "a.jsonl": write_jsonl,
    "a.parquet": write_parquet,
    "saved": write_saved,
}


def test_a_separator_line_ends_a_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\ntwo <|endoftext|> still two\n<|endoftext|>\n\n<|endoftext|>\r\nthree".encode())
    assert read(file) == ["one\ntwo <|endoftext|> still two\n", "three"]
    assert corpus(file).index().num_empty == 1
    file.write_text("one\n---\ntwo\n---\n")
    assert read(file, separator="---") == ["one\n", "two\n"]
    file.write_bytes("\ufeff<|endoftext|>\none".encode())
    assert read(file) == ["one"]


@pytest.mark.parametrize("name", WRITERS)
def test_records_of_every_kind_are_the_same_documents(tmp_path: Path, name: str) -> None:
    records = [{"text": text, "body": f"b{place}"} for place, text in enumerate([*TEXTS, " \n", "", None])]
    path = WRITERS[name](tmp_path / name, records if name != "a.jsonl" else [*records[:-1], {"text": None}])
    assert read(path) == TEXTS
    assert corpus(path).index().num_empty == 3
    assert corpus(path).index().documents_N.tolist() == [0, 1, 2, 3, 3]
    if name != "a.jsonl":
        assert read(path, "body") == [f"b{place}" for place in range(7)]


@pytest.mark.parametrize("name", WRITERS)
def test_conversations_are_rendered_and_empty_ones_counted(tmp_path: Path, name: str) -> None:
    empty = [{"role": "user", "content": " "}, {"role": "assistant", "content": None}]
    path = WRITERS[name](tmp_path / name, [{"messages": CHAT}, {"messages": empty}, {"messages": []}])
    assert read(path) == ["hi\nho"]
    assert corpus(path).index().num_empty == 2


@pytest.mark.parametrize("name", ["a.txt", *WRITERS])
def test_any_order_gives_what_stands_at_each_place(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are small here, so that many are read."""
    monkeypatch.setattr(corpus_module, "_FIRST_BATCH", 3)
    monkeypatch.setattr(corpus_module, "_LARGEST_BATCH_BYTES", 100)
    texts = [f"document {number} {'é' * (number % 7)}\n" for number in range(50)]
    if name == "a.txt":
        (tmp_path / name).write_text("<|endoftext|>\n".join(texts))
        path = tmp_path / name
    else:
        path = WRITERS[name](tmp_path / name, [{"text": text} for text in texts])
    source = corpus(path)
    index = source.index()
    order = index.shuffled(7)
    assert order.tolist() != sorted(order.tolist())
    assert list(source.texts(index, order)) == [texts[place] for place in order]
    again = corpus(path)
    assert (again.index().shuffled(7) == order).all()
    assert again.index().digest == index.digest


def test_a_folder_is_its_files_of_one_kind_by_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}])
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "README.md").write_text("no text of it")
    assert read(tmp_path) == ["a", "b"]
    (tmp_path / "c.txt").write_text("c")
    with pytest.raises(ValueError, match=r"holds \.jsonl, \.txt files; name a file, or a folder with files of one"):
        corpus(tmp_path)


def test_a_long_text_is_drawn_in_parts_that_end_with_a_line(tmp_path: Path) -> None:
    lines = [f"line {number} ß\n" for number in range(60_000)]
    file = tmp_path / "a.txt"
    file.write_text("".join(lines), encoding="utf-8")
    source = corpus(file)
    index = source.index()
    parts = list(source.texts(index, index.shuffled(0)))
    assert 5 < len(parts) < 20
    assert max(len(part.encode()) for part in parts) <= 1 << 16
    assert sorted(line for part in parts for line in part.splitlines(keepends=True)) == sorted(lines)
    assert not parts[0].startswith("line 0 ")
    assert index.num_documents == 1


def test_a_line_of_any_length_is_cut_between_characters(tmp_path: Path) -> None:
    random_text = "".join(random.Random(0).choices("aé€😀", k=150_000))
    file = tmp_path / "a.txt"
    file.write_text(random_text, encoding="utf-8")
    assert read(file) == [random_text]


def test_every_fourth_document_is_kept_for_the_report(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * (70_000 if n == 3 else 5)} for n in range(10)])
    index = corpus(file).index()
    score, report = index.split()
    assert set(index.documents_N[report]) == {3, 7}
    assert len(report) == 3, "both parts of the long one"
    assert sorted([*score, *report]) == list(range(11))
    write_jsonl(file, [{"text": "a"}, {"text": "b"}])
    assert [part.tolist() for part in corpus(file).index().split()] == [[0], [1]]
    write_jsonl(file, [{"text": "a"}])
    with pytest.raises(ValueError, match=r"has 1 document\(s\)"):
        corpus(file).index().split()


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = {}
    for name, texts in (("a", TEXTS), ("b", TEXTS), ("c", [*TEXTS, "more"])):
        digests[name] = corpus(write_parquet(tmp_path / f"{name}.parquet", [{"text": t} for t in texts])).index().digest
    assert digests["a"] == digests["b"] != digests["c"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    source = corpus(file)
    index = source.index()
    write_jsonl(file, [{"text": "another"}])
    with pytest.raises(ValueError, match=r"a\.jsonl: changed while it was read; run again once it is whole"):
        list(source.texts(index, index.shuffled(0)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good \xff bad", "not UTF-8 at byte offset 5"),
        ("a.txt", b"line\n" * 20_000 + b"\xff", "not UTF-8 at byte offset 100000"),
        ("a.txt", b"  \n<|endoftext|>\n", "no text in it"),
        ("a.csv", b"a", "not `.csv`"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["a"]', "line 2: not a JSON object"),
        ("a.jsonl", b'{"body": "a"}', "line 1: no field `text` or `messages`; there are `body`; name one in `field`"),
        ("a.jsonl", b'{"text": 3}', r"line 1: neither a text nor a conversation, which is a list of {role, content}"),
        ("a.jsonl", b'{"messages": [{"from": "me"}]}', "line 1: neither a text nor a conversation"),
        ("a.jsonl", b'{"text": ""}\n', "no text in it"),
        ("a.parquet", b"PAR1 cut off", "ends early or is no Parquet file"),
        ("a.arrow", b"cut off", "ends early or is no Arrow file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_a_table_cut_off_or_without_the_column_is_named(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, [{"body": "b" * 500, "number": 1}] * 20)
    with pytest.raises(ValueError, match=r"no field `text` or `messages`; there are `body`, `number`"):
        read(path)
    with pytest.raises(ValueError, match="the column `number` holds int64, neither texts nor conversations"):
        read(path, "number")
    file = path if path.is_file() else path / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(ValueError, match="ends early"):
        read(path, "body")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a folder without"):
        read(tmp_path)
    saved = write_saved(tmp_path / "train", [{"text": "a"}] * 4)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=f"holds the splits train, test; name one, such as {saved}"):
        read(tmp_path)
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"ends early, data-00001-of-00002\.arrow is missing; copy the folder again"):
        read(saved)
    (saved / "state.json").write_text('{"_indices_data_files": [{"filename": "i.arrow"}]}')
    with pytest.raises(ValueError, match=r"save its flatten_indices\(\) instead"):
        read(saved)
    (saved / "state.json").write_text("[")
    with pytest.raises(ValueError, match="no dataset that `datasets` saved"):
        read(saved)
