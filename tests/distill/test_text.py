"""Text files to documents, documents to packed sequences, sequences to a training order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from inlay.distill.text import pack, read_documents, shuffled_documents, split_documents, training_order

BOS = 1


def tokenizer(adds_bos: bool = True, bos: str | None = "<s>") -> Any:
    """Words `w3` .. `w99` are tokens 3 .. 99."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 100)}}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    if adds_bos:
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token="</s>")


def words(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def test_a_separator_line_ends_a_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\ntwo <|endoftext|> still two\n<|endoftext|>\n\n<|endoftext|>\r\nthree".encode())
    assert read_documents(file) == ["one\ntwo <|endoftext|> still two\n", "three"]
    file.write_text("one\n---\ntwo\n---\n")
    assert read_documents(file, separator="---") == ["one\n", "two\n"]


def test_jsonl_has_a_document_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text, "body": "b"}) for text in ("one\n<|endoftext|>\n", "zwei ü")))
    assert read_documents(file) == ["one\n<|endoftext|>\n", "zwei ü"]
    assert read_documents(file, field="body") == ["b", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good \xff bad", "not UTF-8 at byte offset 5"),
        ("a.txt", b"  \n<|endoftext|>\n", "no text in it"),
        ("a.csv", b"a", "not `.csv`"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["a"]', "line 2: no text in field `text`"),
        ("a.jsonl", b'{"body": "a"}', "line 1: no text in field `text`"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents(file)
    assert str(file) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_documents(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read_documents(tmp_path / "folder.txt")


def test_documents_are_packed_and_tails_open_the_next_sequence_after_bos() -> None:
    packed = pack([words(10, 3), words(20, 6), words(30, 3)], tokenizer(), 6)
    assert packed.dtype == np.int32
    assert packed.tolist() == [[BOS, 10, 11, 12, BOS, 20], [BOS, 21, 22, 23, 24, 25]]  # the partial last one is dropped


def test_a_long_document_opens_each_sequence_with_bos_and_loses_nothing() -> None:
    packed = pack([words(3, 90)], tokenizer(), 10)
    assert (packed[:, 0] == BOS).all()
    assert packed[:, 1:].ravel().tolist() == list(range(3, 93))


def test_a_document_that_ends_with_the_sequence_leaves_no_tail() -> None:
    packed = pack([words(3, 3), words(10, 3)], tokenizer(), 4)
    assert packed.tolist() == [[BOS, 3, 4, 5], [BOS, 10, 11, 12]]


def test_bos_is_put_where_the_tokenizer_forgets_it_and_eos_stands_in_where_there_is_none() -> None:
    assert pack([words(3, 3)], tokenizer(adds_bos=False), 4).tolist() == [[BOS, 3, 4, 5]]
    assert pack([words(3, 3)], tokenizer(adds_bos=False, bos=None), 4).tolist() == [[2, 3, 4, 5]]


def test_packing_stops_when_there_are_enough_tokens() -> None:
    given = tokenizer()
    seen: list[str] = []

    class Watched(PreTrainedTokenizerFast):  # type: ignore[misc]
        def __call__(self, batch: list[str], **options: Any) -> Any:
            seen.extend(batch)
            return super().__call__(batch, **options)

    watched = Watched(tokenizer_object=given.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    assert pack(["w3 w4 w5"] * 5000, watched, 4, tokens=9).shape == (3, 4)
    assert len(seen) < 1000


def test_less_text_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="the text has 4 tokens, shorter than one sequence of 8"):
        pack([words(3, 3)], tokenizer(), 8)
    with pytest.raises(ValueError, match="`sequence_length` is 1"):
        pack([words(3, 3)], tokenizer(), 1)
    with pytest.raises(ValueError, match="`tokens` is 0"):
        pack([words(3, 3)], tokenizer(), 4, tokens=0)


def test_every_fourth_document_is_kept_for_the_report() -> None:
    documents = [f"d{i}" for i in range(10)]
    score, report = split_documents(documents)
    assert report == ["d3", "d7"]
    assert sorted(score + report) == documents
    assert split_documents(documents[:2]) == (["d0"], ["d1"])
    with pytest.raises(ValueError, match=r"has 1 document\(s\)"):
        split_documents(documents[:1])


def test_the_first_tokens_of_shuffled_documents_stand_for_the_whole_text() -> None:
    documents = [f"w{3 + i // 40}" for i in range(97 * 40)]  # like with like, as in a file that was sorted
    shuffled = shuffled_documents(documents, seed=1)
    assert sorted(shuffled) == sorted(documents)
    assert shuffled == shuffled_documents(documents, seed=1) != shuffled_documents(documents, seed=2)
    first = pack(shuffled, tokenizer(), 8, tokens=800)
    assert first[first >= 3].mean() == pytest.approx(51, abs=5)


def test_a_text_of_one_document_is_shuffled_in_parts_that_end_with_a_line() -> None:
    lines = [f"line {number}\n" for number in range(60_000)]
    parts = shuffled_documents(["".join(lines)], seed=0)
    assert 5 < len(parts) < 20
    assert max(map(len, parts)) <= 1 << 16
    assert sorted(line for part in parts for line in part.splitlines(keepends=True)) == sorted(lines)
    assert not parts[0].startswith("line 0\n")
    endless = "x" * 200_000
    assert "".join(shuffled_documents([endless], seed=0)) == endless


def test_training_order_is_whole_shuffled_epochs() -> None:
    order = training_order(10, tokens=25 * 8, sequence_length=8, seed=3)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    assert (order == training_order(10, 25 * 8, 8, seed=3)).all()
    assert (order != training_order(10, 25 * 8, 8, seed=4)).any()


def test_held_out_sequences_are_never_trained_on() -> None:
    order = training_order(10, tokens=40 * 8, sequence_length=8, seed=0, held_out=3)
    assert len(order) == 43
    assert not set(order[:40]) & set(order[40:])
    assert len(set(order[40:])) == 3
    with pytest.raises(ValueError, match="leave none to train on"):
        training_order(3, 8, 8, 0, held_out=3)
